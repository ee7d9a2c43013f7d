"""Seconds to cut a network by the norm of its filters, next to the same with torch-pruning.

Both remove the same share of the multiply-accumulates from the same random weights by the L2 norm of what is cut
together. Here that is the analysis, the search of `l2` and the slim network. There it is a `MetaPruner` with a global
ranking that takes one small step after the other and counts operations after each, since it has no budget of them; the
last linear layer is left alone, as it is here. The two take turns, each time on a new copy.
"""

import importlib.util
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from ekgsearch.api.cut import analyse, cost, masked, slim
from ekgsearch.api.search import search
from ekgsearch.artefact.factory import factory_of
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import InputShape
from ekgsearch.artefact.targets import find_any
from ekgsearch.bench.base import BenchSettings, Measurement
from ekgsearch.errors import JobError
from ekgsearch.fields import Pixels, Positive, Share, Text

STEPS = 200
"""Steps in which torch-pruning would remove everything."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["pruners"]
    networks: tuple[Text, ...] = Field(
        ("torchvision/convnext_tiny", "torchvision/mobilenet_v2"), min_length=1, description="networks as in net.name"
    )
    image_size: Pixels = Field(64, description="side of the square images in pixels")
    reduction: Share = Field(0.4, description="share of the multiply-accumulates to remove")
    pairs: Positive = Field(3, description="interleaved pairs of cuts")

    @property
    def lacking(self) -> str:
        """In words, what this machine lacks for the benchmark."""
        return "" if importlib.util.find_spec("torch_pruning") else "it needs torch-pruning: pip install torch-pruning"

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """One small network, once."""
        return {"networks": ("torchvision/squeezenet1_1",), "reduction": 0.05, "pairs": 1}, ()


def run(settings: Settings) -> Iterator[Measurement]:
    """Cut every network by both.

    Raises:
        JobError: torch-pruning is missing.
        NetworkError, BudgetError: there is no such network, or so much cannot be removed.
    """
    if settings.lacking:
        raise JobError(settings.lacking)
    shape = (3, settings.image_size, settings.image_size)
    for target in settings.networks:
        seconds: dict[str, list[float]] = {"ekgsearch": [], "torch-pruning": []}
        removed: dict[str, float] = {}
        for _ in range(settings.pairs):
            for name, prune in (("ekgsearch", _ours), ("torch-pruning", _theirs)):
                network = build(factory_of(target, {}, shape, 10), seed=0, find=find_any).eval()
                spent, removed[name] = prune(network, shape, settings.reduction)
                seconds[name].append(spent)
        for name, values in seconds.items():
            yield Measurement.of(f"{target}, {name}", "cut", "s", values)
            yield Measurement.count(f"{target}, {name}", "MACs removed", "%", 100 * removed[name])


def _ours(network: nn.Module, shape: InputShape, reduction: float) -> tuple[float, float]:
    """Seconds, and the share of the MACs that is gone; the slim network computes what the masked one does."""
    start = time.perf_counter()
    graph = analyse(network, shape)
    kept = search(graph, method="l2", reduction=reduction, progress=False)
    small = slim(graph, kept)
    seconds = time.perf_counter() - start
    images = torch.randn(2, *shape)
    torch.testing.assert_close(small.eval()(images), masked(graph, kept)(images))
    return seconds, 1 - cost(graph, kept).macs / cost(graph).macs


def _theirs(network: nn.Module, shape: InputShape, reduction: float) -> tuple[float, float]:
    """Seconds, and the share of the MACs that is gone; the network still runs."""
    import torch_pruning

    images = torch.randn(1, *shape)
    full = torch_pruning.utils.count_ops_and_params(network, images)[0]
    start = time.perf_counter()
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    pruner = torch_pruning.pruner.MetaPruner(
        network,
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=linear[-1:],
    )
    macs = full
    while macs > (1 - reduction) * full:
        pruner.step()
        macs = torch_pruning.utils.count_ops_and_params(network, images)[0]
    seconds = time.perf_counter() - start
    network(images)
    return seconds, 1 - macs / full
