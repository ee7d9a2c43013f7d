"""The tiny networks by name, and random weights, images and sub-networks for them."""

import random
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from blocks import (
    Dense,
    DepthMultiplier,
    Depthwise,
    FlattenLiteral,
    Grouped,
    LiteralShuffle,
    OneChannel,
    OptionA,
    Plain,
    PreActivation,
    Shuffle,
    Slices,
    SqueezeExcite,
    ZeroCat,
)
from from_the_field import FIELD
from operations_in_between import MIXERS, OPERATIONS, Mixing
from torch import nn
from unusual import (
    ChannelsLast,
    ControlFlow,
    Decoder,
    InPlace,
    InPlaceOnCopy,
    OwnConv,
    Scales,
    Selective,
    Shared,
    Tied,
    Transposed,
    TwoOutputs,
    UNet,
)

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.records import Subnetwork

SHAPE = (3, 8, 8)

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
    "in place on a copy": (InPlaceOnCopy, (12,)),
    "own convolution": (OwnConv, (5, 6)),
    "channels last": (ChannelsLast, (6, 9)),
    "selective": (Selective, (6,)),
    "two outputs": (TwoOutputs, ()),
    "folded and unfolded": (lambda: Mixing(lambda net, x: x.reshape(-1, 3, 8, 8).reshape(-1, 6, 8, 8)), (5, 6, 7)),
    "constant channels": (lambda: Mixing(lambda net, x: F.pad(x[:, 1:], (0, 0, 0, 0, 0, 1), value=1.0)), (5, 1, 5, 7)),
}
"""Networks and the sizes of the channel groups that can be cut, in order."""

for _name, (_operation, _module, _sizes) in OPERATIONS.items():
    NETWORKS[_name] = (partial(Mixing, _operation, _module), _sizes)
NETWORKS |= {_name: (_build, (5, 7)) for _name, _build in MIXERS.items()}
NETWORKS |= FIELD


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
