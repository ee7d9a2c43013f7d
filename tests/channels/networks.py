"""Tiny networks, one for each thing that real networks do to channels, and random weights and sub-networks for them."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.records import Subnetwork

SHAPE = (3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Head(nn.Module):
    """Base: global average pool and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Plain(Head):
    def __init__(self) -> None:
        super().__init__(7)
        self.first, self.second = conv(3, 6), conv(6, 7)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class OptionA(Head):
    """Residual blocks with parameter-free shortcuts: every second pixel, zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem = conv(3, 8)
        self.a, self.b = conv(8, 5), nn.Conv2d(5, 8, 3, padding=1)
        self.c, self.d, self.norm = conv(8, 6, stride=2), nn.Conv2d(6, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.b(self.a(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(shortcut + self.norm(self.d(self.c(x))))
        return self.head(x)


class ZeroCat(Head):
    """Parameter-free shortcut by concatenating a zeroed copy."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.body = conv(3, 5), nn.Conv2d(5, 10, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.body(x) + torch.cat([x, x.mul(0)], 1)))


class Depthwise(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem = conv(3, 6)
        self.expand, self.filter = conv(6, 9, 1), conv(9, 9, groups=9)
        self.project, self.norm = nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.norm(self.project(self.filter(self.expand(x)))))


class DepthMultiplier(Head):
    """A depthwise convolution with three outputs for each input."""

    def __init__(self) -> None:
        super().__init__(5)
        self.stem, self.spread, self.last = conv(3, 4), conv(4, 12, groups=4), conv(12, 5)

    def forward(self, x):
        return self.head(self.last(self.spread(self.stem(x))))


class Grouped(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.grouped, self.last = conv(3, 8), conv(8, 12, groups=4), conv(12, 6, groups=2)

    def forward(self, x):
        return self.head(self.last(self.grouped(self.stem(x))))


class OneChannel(Head):
    """One-channel convolutions, which are no depthwise ones."""

    def __init__(self) -> None:
        super().__init__(5)
        self.squeeze, self.single, self.last = conv(3, 1), conv(1, 1), conv(1, 5)

    def forward(self, x):
        return self.head(self.last(self.single(self.squeeze(x))))


class Dense(Head):
    def __init__(self) -> None:
        super().__init__(11)
        self.a, self.b, self.c = conv(3, 4), conv(7, 5), conv(12, 6)
        self.norm = nn.BatchNorm2d(11)

    def forward(self, x):
        y = torch.cat([x, self.a(x)], 1)
        y = torch.cat([y, self.b(y)], 1)
        y = torch.cat([self.c(y), y[:, -5:]], 1)
        return self.head(torch.relu(self.norm(y)))


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class Shuffle(Head):
    """Two units of ShuffleNet v2: split, one branch, join, shuffle."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv(3, 12)
        self.one = nn.Sequential(conv(6, 6, 1), conv(6, 6, groups=6), conv(6, 6, 1))
        self.two = nn.Sequential(conv(6, 6, 1), conv(6, 6, groups=6), conv(6, 6, 1))

    def forward(self, x):
        x = self.stem(x)
        for branch in (self.one, self.two):
            left, right = x.chunk(2, dim=1)
            x = shuffle(torch.cat([left, branch(right)], 1), 2)
        return self.head(x)


class LiteralShuffle(Head):
    """The same shuffle with sizes written as numbers, and the shuffle layer of torch."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.middle, self.last = conv(3, 8), conv(8, 8), conv(8, 8)
        self.shuffle = nn.ChannelShuffle(4)

    def forward(self, x):
        x = self.stem(x).reshape(-1, 2, 4, 8, 8).permute(0, 2, 1, 3, 4).reshape(-1, 8, 8, 8)
        return self.head(self.last(self.shuffle(self.middle(x))))


class Slices(Head):
    """Channel slices: both halves, every second channel, split by sizes, a flip."""

    def __init__(self) -> None:
        super().__init__(9)
        self.stem = conv(3, 10)
        self.a, self.b, self.c, self.d = conv(4, 6), conv(6, 3), conv(5, 3), conv(10, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.a(x[:, :4]) + x[:, 4:]
        left, right = torch.split(y, [2, 4], 1)
        y = torch.cat([right, left], 1)
        return self.head(torch.cat([self.b(y), self.c(x[:, ::2]), self.d(x.flip(1))], 1))


class SqueezeExcite(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = conv(3, 6), conv(6, 6)
        self.down, self.up = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x):
        x = self.body(self.stem(x))
        b, c, _, _ = x.size()
        gate = F.adaptive_avg_pool2d(x, 1).view(b, c)
        gate = torch.sigmoid(self.up(F.relu(self.down(gate)))).view(b, c, 1, 1)
        return self.head(x * gate.expand_as(x))


class FlattenLiteral(nn.Module):
    """A feature map flattened into a linear layer, the size written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = conv(3, 5), nn.MaxPool2d(2), conv(5, 6)
        self.hidden, self.norm, self.last = nn.Linear(6 * 4 * 4, 7), nn.BatchNorm1d(7), nn.Linear(7, 4)

    def forward(self, x):
        x = self.b(self.pool(self.a(x))).view(-1, 6 * 4 * 4)
        x = F.dropout(F.relu(self.norm(self.hidden(x))), 0.5, self.training)
        return self.last(x)


class PreActivation(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.inner = nn.ModuleList(conv(6, 5) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(5, 6, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=False):
            x = x + outer(inner(F.relu(norm(x))))
        return self.head(F.relu(self.norms[2](x)))


class Transposed(nn.Module):
    """An auto-encoder; transposed convolutions plain, grouped and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 6), nn.MaxPool2d(2), conv(6, 8))
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(6, 4, 3, padding=1, groups=2)
        self.depthwise = nn.ConvTranspose2d(4, 8, 3, padding=1, groups=4, bias=False)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.up(self.encoder(x)))
        return self.last(F.relu(self.depthwise(F.relu(self.grouped(x)))))


class Decoder(nn.Module):
    """A vector unfolded into a feature map, and pixel shuffling."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 5 * 4 * 4)
        self.unfold, self.body, self.pixels = nn.Unflatten(1, (5, 4, 4)), conv(5, 12), nn.PixelShuffle(2)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.unfold(F.relu(self.decode(F.relu(self.encode(x.flatten(1))))))
        return self.last(self.pixels(self.body(x)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up, self.last = conv(3, 5), conv(5, 6), conv(11, 5), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        high = self.down(x)
        low = F.interpolate(self.deep(F.avg_pool2d(high, 2)), scale_factor=2, mode="nearest")
        return self.last(self.up(torch.cat([high, low], 1)))


class Shared(Head):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__(7)
        self.stem, self.twice, self.last = conv(3, 6), nn.Conv2d(6, 6, 3, padding=1), conv(6, 7)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(F.relu(self.twice(F.relu(self.twice(x))))))


class Tied(Head):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.a, self.b = conv(3, 6), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(self.stem(x))))))


class ControlFlow(Head):
    """A forward that symbolic tracing cannot follow: it looks at sizes."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.left, self.same = conv(3, 12), conv(6, 6), conv(6, 6, groups=6)
        self.up, self.drop = nn.ConvTranspose2d(12, 12, 2, 2), nn.Dropout(0.3)
        self.act = nn.PReLU(12)

    def forward(self, x):
        if x.shape[-1] > 100:
            raise ValueError("too large")
        x = self.stem(x)
        for _ in range(x.dim() - 3):
            x = x * 2
        left, right = x.chunk(2, 1)
        x = shuffle(torch.cat([self.left(left), self.same(right)], 1), 2)
        x = self.act(self.up(x[:, :, :4, :4])) + x
        x = F.adaptive_avg_pool2d(self.drop(x), 1)
        return self.linear(F.dropout(x.view(x.size(0), 12), 0.2, self.training))


class Scales(Head):
    """PReLU with a slope per channel and with one, instance normalisation."""

    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3), nn.Conv2d(7, 6, 1)
        self.slopes, self.slope, self.norm = nn.PReLU(5), nn.PReLU(), nn.InstanceNorm2d(7, affine=True)

    def forward(self, x):
        return self.head(self.slope(self.c(self.norm(self.b(self.slopes(self.a(x)))))))


class InPlace(Head):
    """In-place operations whose effect is read later under the old name."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.body(self.relu(x))
        y += x
        F.relu_(y)
        y.mul_(0.5)
        F.relu(y, True)
        return self.head(y)


class PaddedConv(nn.Conv2d):
    """A convolution class of its own that pads at the bottom and right."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class OwnConv(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b = PaddedConv(3, 5, 3, stride=2), PaddedConv(5, 6, 3, stride=2)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class ChannelsLast(Head):
    """Linear layers over the last axis, between permutations."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.wide, self.narrow = conv(3, 6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        x = self.stem(x)
        y = x.permute(0, 2, 3, 1)
        y = self.narrow(F.gelu(self.wide(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


class Selective(Head):
    """Branches stacked on a new axis and averaged."""

    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b = conv(3, 6), conv(3, 6, 1)

    def forward(self, x):
        return self.head(torch.stack([self.a(x), self.b(x)], dim=1).mean(1))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 6), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return {"boxes": self.a(x), "classes": (self.b(x), x.mean((2, 3)))}


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

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Plain, (6, 7)),
    "option A": (OptionA, (8, 5, 6, 8)),
    "zero concatenation": (ZeroCat, (5,)),
    "depthwise": (Depthwise, (6, 9)),
    "depth multiplier": (DepthMultiplier, (4, 5)),
    "grouped": (Grouped, (2, 3, 3)),
    "one channel": (OneChannel, (1, 1, 5)),
    "dense": (Dense, (4, 5, 6)),
    "shuffle": (Shuffle, (3, 3, 6, 6, 3, 3, 6, 6)),
    "literal shuffle": (LiteralShuffle, (8, 8, 8)),
    "slices": (Slices, (2, 2, 1, 1, 2, 2, 3, 3, 3)),
    "squeeze and excite": (SqueezeExcite, (6, 6, 3)),
    "literal flatten": (FlattenLiteral, (5, 6, 7)),
    "pre-activation": (PreActivation, (6, 5, 5)),
    "transposed": (Transposed, (6, 8, 3, 2)),
    "decoder": (Decoder, (6, 5, 3)),
    "u-net": (UNet, (5, 6, 5)),
    "shared": (Shared, (7,)),
    "tied": (Tied, ()),
    "control flow": (ControlFlow, (6, 6, 6)),
    "scales": (Scales, (5, 7, 6)),
    "in place": (InPlace, (6,)),
    "own convolution": (OwnConv, (5, 6)),
    "channels last": (ChannelsLast, (6, 9)),
    "selective": (Selective, (6,)),
    "two outputs": (TwoOutputs, ()),
    "folded and unfolded": (lambda: Mixing(lambda net, x: x.reshape(-1, 3, 8, 8).reshape(-1, 6, 8, 8)), (5, 6, 7)),
    "constant channels": (lambda: Mixing(lambda net, x: F.pad(x[:, 1:], (0, 0, 0, 0, 0, 1), value=1.0)), (5, 1, 5, 7)),
}
"""Networks and the sizes of the channel groups that can be cut, in order."""


def make(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network in float64 with random weights everywhere, also in norms and their statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().double()
        return randomise(network)


def randomise(network: nn.Module) -> nn.Module:
    """Give norms random scales, shifts and statistics, so that a removed channel is nowhere zero by chance."""
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d) and module.affine:
            size = (module.num_features,)
            with torch.no_grad():
                module.weight.copy_(torch.rand(size, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(size, generator=generator) * 0.3)
                if module.running_mean is not None:
                    module.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
                    module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
    return network


def images(shape: tuple[int, int, int] = SHAPE, batch: int = 3) -> torch.Tensor:
    """Random float64 images; an odd batch, so that sizes of the traced batch of two would show."""
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def random_subnetwork(graph: ChannelGraph, seed: int) -> Subnetwork:
    """Keep a random, non-empty set of channels in every channel group."""
    rng = random.Random(seed)
    return Subnetwork.of({g.name: rng.sample(range(g.size), rng.randint(1, g.size)) for g in graph.groups})


def one_left(graph: ChannelGraph, name: str, seed: int) -> Subnetwork:
    """Cut one channel group to one channel, leave the others whole."""
    return graph.full().replace(name, [random.Random(seed).randrange(graph.group(name).size)])
