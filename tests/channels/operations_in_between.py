"""Networks with one operation between their layers: those that mix channels, and those that only look unusual."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from blocks import Head, conv
from torch import nn
from torch.nn.utils import parametrizations


class Mixing(Head):
    """Something in the middle that mixes channels, between layers whose channels it must not reach."""

    def __init__(self, mix: Callable[[nn.Module, torch.Tensor], torch.Tensor], module: nn.Module | None = None) -> None:
        super().__init__(7)
        self.before, self.inner, self.after = conv(3, 5), conv(5, 6), conv(6, 7)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))
        self.module = module
        self.mix = mix

    def forward(self, x):
        return self.head(self.after(self.mix(self, self.inner(self.before(x)))))


MIXERS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: Mixing(lambda net, x: torch.softmax(x, 1)),
    "group norm": lambda: Mixing(lambda net, x: net.module(x), nn.GroupNorm(2, 6)),
    "layer norm": lambda: Mixing(lambda net, x: net.module(x), nn.LayerNorm([6, 8, 8])),
    "mean over channels": lambda: Mixing(lambda net, x: x * torch.sigmoid(x.mean(1, keepdim=True))),
    "einsum": lambda: Mixing(lambda net, x: torch.einsum("bchw,bdhw->bdhw", x, x)),
    "matmul": lambda: Mixing(lambda net, x: torch.matmul(x, x.transpose(2, 3))),
    "normalize": lambda: Mixing(lambda net, x: F.normalize(x, dim=1)),
    "division": lambda: Mixing(lambda net, x: x / (x + 1.0)),
    "channel count": lambda: Mixing(lambda net, x: x / x.size(1)),
    "local response": lambda: Mixing(lambda net, x: net.module(x), nn.LocalResponseNorm(2)),
    "own parameter": lambda: Mixing(lambda net, x: x * net.scale),
    "weight norm": lambda: Mixing(lambda net, x: net.module(x), parametrizations.weight_norm(nn.Conv2d(6, 6, 1))),
    "linear over positions": lambda: Mixing(lambda net, x: net.module(x), nn.Linear(8, 8)),
    "cumulative sum": lambda: Mixing(lambda net, x: x.cumsum(1)),
}
"""Networks in which the six channels of `inner.0` must not be cut, by what they meet."""

Operation = Callable[[nn.Module, torch.Tensor], torch.Tensor]
OPERATIONS: dict[str, tuple[Operation, nn.Module | None, tuple[int, ...]]] = {
    "repeat": (lambda n, x: n.module(x.repeat(1, 2, 1, 1)), nn.Conv2d(12, 6, 1), (5, 6, 6, 7)),
    "repeat interleaved": (lambda n, x: n.module(x.repeat_interleave(2, 1)), nn.Conv2d(12, 6, 1), (5, 6, 6, 7)),
    "gated halves": (lambda n, x: n.module(x[:, :3] * torch.sigmoid(x[:, 3:])), nn.Conv2d(3, 6, 1), (5, 3, 6, 7)),
    "maximum of halves": (lambda n, x: n.module(torch.maximum(*x.chunk(2, 1))), nn.Conv2d(3, 6, 1), (5, 3, 6, 7)),
    "maximum over a fold": (lambda n, x: n.module(x.view(-1, 3, 2, 8, 8).amax(2)), nn.Conv2d(3, 6, 1), (5, 6, 7)),
    "one channel times all": (lambda n, x: x * x[:, 2].unsqueeze(1), None, (5, 7)),
    "half by size": (lambda n, x: n.module(x[:, : x.size(1) // 2]), nn.Conv2d(3, 6, 1), (5, 3, 3, 6, 7)),
    "concatenated images": (lambda n, x: torch.cat([x, x.relu()], 0)[:3], None, (5, 6, 7)),
    "concatenated rows": (lambda n, x: torch.cat([x, n.module(x)], 2), nn.Conv2d(6, 6, 1), (5, 6, 7)),
    "view of another's shape": (lambda n, x: x.flatten(2).view(x.shape) + x, None, (5, 6, 7)),
    "tokens": (
        lambda n, x: x + n.module(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape),
        nn.Linear(6, 6),
        (5, 6, 7),
    ),
    "pixel unshuffle": (lambda n, x: n.module(F.pixel_unshuffle(x, 2)), nn.Conv2d(24, 6, 1), (5, 6, 6, 7)),
    "unbound and stacked": (lambda n, x: torch.stack(torch.unbind(x, 1), 1), None, (5, 7)),
    "zeros joined": (
        lambda n, x: n.module(torch.cat([x, torch.zeros(x.size(0), 2, 8, 8, dtype=x.dtype)], 1)),
        nn.Conv2d(8, 6, 1),
        (5, 6, 6, 7),
    ),
    "sorted": (lambda n, x: x.sort(1)[0], None, (5, 7)),
    "flipped and added": (lambda n, x: x + x.flip(1), None, (5, 3, 7)),
    "rolled and added": (lambda n, x: x + x.roll(2, 1), None, (5, 2, 7)),
    "channels as rows": (lambda n, x: n.module(x.transpose(1, 2)), nn.Conv2d(8, 6, 1), (5, 6, 7)),
    "channels cropped by a pad": (
        lambda n, x: n.module(F.pad(x, (0, 0, 0, 0, -1, 0))),
        nn.Conv2d(5, 6, 1),
        (5, 1, 5, 6, 7),
    ),
    "channels and rows padded": (
        lambda n, x: n.module(F.pad(x, (1, 1, 0, 2, 1, 3))),
        nn.Conv2d(10, 6, 1),
        (5, 6, 6, 7),
    ),
    "reflected border": (lambda n, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), None, (5, 6, 7)),
    "pooled times all": (lambda n, x: x * x.mean((2, 3))[:, :, None, None], None, (5, 6, 7)),
    "channels listed twice": (lambda n, x: n.module(x[:, [5, 1, 1]]), nn.Conv2d(3, 6, 1), (5, 4, 1, 1, 6, 7)),
    "ellipsis": (lambda n, x: n.module(x[:, 1:5, ..., 1:]), nn.Conv2d(4, 6, 1), (5, 6, 7)),
    "norm of flattened maps": (lambda n, x: n.module(x.flatten(1)).view(x.shape), nn.BatchNorm1d(384), (5, 6, 7)),
    "norm used twice": (lambda n, x: n.module(n.module(x)), nn.BatchNorm2d(6), (5, 7)),
    "size as a factor": (lambda n, x: x + x.size(2) / x.size(1), None, (5, 7)),
}
"""Operations between two layers, the module they use, and the sizes of the channel groups that can be cut."""
