"""Tiny networks in the manner of public bug reports: layers that are not known, tensors with names of their own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from blocks import Head, conv
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torchvision.ops import FrozenBatchNorm2d


class Behind(Head):
    """Something with tensors of its own before the first place where channels can be scored."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(6)
        self.stem, self.module = nn.Conv2d(3, 6, 3, padding=1), module
        self.body, self.last = conv(6, 7), nn.Conv2d(7, 6, 1)

    def forward(self, x):
        x = F.relu(self.module(F.relu(self.stem(x))))
        return self.head(F.relu(self.last(self.body(x))))


class LastAxisNorm(nn.Module):
    """LayerNorm over the channels of each pixel, as in ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over the pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.transpose(1, 2).reshape(x.shape)


class OverRows(nn.Module):
    """A one-dimensional convolution over the pixels in a row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x):
        return self.convolution(x.flatten(2)).reshape(x.shape)


class OverVolumes(nn.Module):
    """A batch norm of another number of axes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(width)

    def forward(self, x):
        return self.norm(x[:, :, None])[:, :, 0]


def with_pruning_mask(layer: nn.Conv2d) -> nn.Conv2d:
    return prune.l1_unstructured(layer, "weight", 0.3)


def with_hook(layer: nn.Conv2d) -> nn.Conv2d:
    return weight_norm(layer)


def frozen_norm(width: int) -> FrozenBatchNorm2d:
    norm = FrozenBatchNorm2d(width)
    for tensor in (norm.weight, norm.running_var):
        tensor.uniform_(0.5, 1.5)
    for tensor in (norm.bias, norm.running_mean):
        tensor.normal_(0, 0.3)
    return norm


class Kernel(Head):
    """A convolution whose kernel and bias are tensors of the network itself, used once or twice."""

    def __init__(self, uses: int = 1, is_buffer: bool = False, stride: int = 1) -> None:
        super().__init__(6)
        self.stem, self.last = conv(3, 6), conv(6, 6)
        self.uses, self.stride = uses, stride
        kernel = torch.randn(6, 6, 3, 3) * 0.2
        self.shift = nn.Parameter(torch.randn(6))
        if is_buffer:
            self.register_buffer("kernel", kernel)
        else:
            self.kernel = nn.Parameter(kernel)

    def forward(self, x):
        x = F.relu(F.conv2d(self.stem(x), self.kernel, self.shift, padding=1))
        if self.uses == 2:
            x = F.relu(F.conv2d(x, self.kernel, self.shift, padding=1, stride=self.stride))
        return self.head(self.last(x))


class OwnNames(Head):
    """Functional layers of every kind on tensors with names of the network's own."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.last = conv(3, 6), conv(6, 6)
        self.up = nn.Parameter(torch.randn(6, 7, 2, 2) * 0.3)
        self.slope, self.gamma, self.beta = (nn.Parameter(torch.rand(7)) for _ in range(3))
        self.register_buffer("mean", torch.randn(7) * 0.1)
        self.register_buffer("var", torch.rand(7) + 0.5)
        self.mix = nn.Parameter(torch.randn(6, 7) * 0.3)

    def forward(self, x):
        x = F.conv_transpose2d(self.stem(x), self.up, stride=2)
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training)
        x = F.prelu(x, self.slope)
        x = F.linear(x.permute(0, 2, 3, 1), self.mix).permute(0, 3, 1, 2)
        return self.head(self.last(x))


class FixedBlur(Head):
    """A fixed depthwise filter that several places use."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.last = conv(3, 6), conv(6, 6)
        self.register_buffer("blur", torch.full((6, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x):
        x = F.conv2d(self.stem(x), self.blur, padding=1, groups=6)
        return self.head(F.conv2d(self.last(x), self.blur, padding=1, groups=6))


class Ordered(Head):
    """Channels taken in an order that a buffer holds."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.last = conv(3, 6), conv(6, 6)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 5, 4]))

    def forward(self, x):
        return self.head(self.last(self.stem(x)[:, self.order]))


class BareSqueeze(nn.Module):
    """A squeeze of all axes of one element, which with one channel left would take the channels too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.linear = conv(3, 6), conv(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.linear(F.adaptive_avg_pool2d(self.last(self.stem(x)), 1).squeeze())


class Unread(Head):
    """A layer that no forward reads."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body, self.dead = conv(3, 6), conv(6, 6), nn.Linear(5, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


class AuxiliaryHead(Head):
    """A second classifier with dropout, which runs and is returned in training only."""

    def __init__(self, is_noisy: bool = False) -> None:
        super().__init__(6)
        self.stem, self.body, self.side = conv(3, 6), conv(6, 6), conv(6, 5)
        self.hidden, self.out = nn.Linear(5, 7), nn.Linear(7, 4)
        self.is_noisy = is_noisy

    def forward(self, x):
        x = self.stem(x)
        logits = self.head(F.dropout(self.body(x), 0.4, self.training))
        if not self.training:
            return logits
        y = F.adaptive_avg_pool2d(self.side(x), 1).flatten(1)
        if self.is_noisy:
            y = y + torch.rand(5, dtype=y.dtype)
        return logits, self.out(F.dropout(F.relu(self.hidden(y)), 0.4, self.training))


class DropsPaths(Head):
    """Stochastic depth written by hand, rare enough that two images seldom show it."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = conv(3, 6), conv(6, 6)

    def forward(self, x):
        x = self.stem(x)
        y = self.body(x)
        if self.training:
            y = y * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.01)
        return self.head(x + y)


class OtherInTraining(Head):
    """A block that computes something else in training."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = conv(3, 6), Scaled(6)

    def forward(self, x):
        return self.head(self.body(self.stem(x)))


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = conv(width, width)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.steps += 1
        return self.inner(x) * (2.0 if self.training else 1.0)


class SizeOfAnother(Head):
    """Channels of one value taken by the number of channels of another."""

    def __init__(self, take) -> None:
        super().__init__(6)
        self.stem, self.last, self.mixed = conv(3, 6), conv(6, 6), nn.Conv2d(6, 6, 1)
        self.take = take

    def forward(self, x):
        x = self.stem(x)
        y = self.take(torch.softmax(self.mixed(x), 1), x)
        return self.head(self.last(x)) + y.square().mean((1, 2, 3))[:, None]


class TwoTypes(Head):
    """A part that computes in other numbers than the rest."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body, self.last = conv(3, 6), conv(6, 6), conv(6, 6)

    def double(self):
        super().double()
        self.body.float()
        return self

    def forward(self, x):
        return self.head(self.last(self.body(self.stem(x).float()).double()))


class Flags(Head):
    """Returns booleans next to the logits."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = conv(3, 6), conv(6, 6)

    def forward(self, x):
        logits = self.head(self.body(self.stem(x)))
        return logits, logits > 0


class SpreadGate(Head):
    """A map of one channel spread over those of another."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.last, self.gate = conv(3, 6), conv(6, 6), nn.Conv2d(6, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(x)) + self.gate(x).sigmoid().expand_as(x).mean((1, 2, 3))[:, None]


FIELD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "behind group norm": (lambda: Behind(nn.GroupNorm(2, 6)), (7, 6)),
    "behind layer norm": (lambda: Behind(LastAxisNorm(6)), (7, 6)),
    "behind attention": (lambda: Behind(Attention(6)), (7, 6)),
    "behind a 1d convolution": (lambda: Behind(OverRows(6)), (7, 6)),
    "behind weight norm": (lambda: Behind(parametrizations.weight_norm(nn.Conv2d(6, 6, 3, padding=1))), (7, 6)),
    "behind a weight norm by hook": (lambda: Behind(with_hook(nn.Conv2d(6, 6, 3, padding=1))), (7, 6)),
    "behind a pruning mask": (lambda: Behind(with_pruning_mask(nn.Conv2d(6, 6, 3, padding=1))), (7, 6)),
    "behind a frozen norm": (lambda: Behind(frozen_norm(6)), (7, 6)),
    "own kernel": (Kernel, (6, 6, 6)),
    "own kernel in a buffer": (lambda: Kernel(is_buffer=True), (6, 6, 6)),
    "own kernel used twice": (lambda: Kernel(2), (6,)),
    "own kernel used in two ways": (lambda: Kernel(2, stride=2), (6,)),
    "own names": (OwnNames, (6, 7, 6, 6)),
    "fixed blur used twice": (FixedBlur, ()),
    "ordered by a buffer": (Ordered, (6,)),
    "bare squeeze": (BareSqueeze, (6, 5)),
    "unread layer": (Unread, (6, 6)),
    "auxiliary head": (AuxiliaryHead, (6, 6)),
    "sliced by another's size": (lambda: SizeOfAnother(lambda y, x: y[:, : x.shape[1]]), (6, 6)),
    "shaped as another": (lambda: SizeOfAnother(lambda y, x: y.flatten(1).reshape(x.shape)), (6, 6)),
    "rolled by another's size": (lambda: SizeOfAnother(lambda y, x: torch.roll(y, x.shape[1] // 2, 1)[:, :2]), (6, 6)),
    "flags": (Flags, (6, 6)),
    "spread gate": (SpreadGate, (6,)),
    "behind a norm of volumes": (lambda: Behind(OverVolumes(6)), (7, 6)),
    "norm without statistics": (lambda: Behind(nn.BatchNorm2d(6, track_running_stats=False)), (6, 7, 6)),
}
"""Networks and the sizes of the channel groups that can be cut, in order."""
