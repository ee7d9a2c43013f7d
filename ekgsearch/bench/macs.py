"""Convolution MACs that a whole search executes: the exact tier against the naive masked algorithm.

Both make the same decisions, so the naive cost follows from them: every candidate and both passes of the scores run
the whole unpruned network. The exact tier is counted as it runs, operation by operation (torch's FLOP counter,
convolutions forward and backward, two FLOPs per MAC), on a few images of noise and random weights: MACs depend on
shapes and on which channels are kept, not on what the pixels show. Both are per image, so the number of images matters
only in this: what scoring computed and candidates start from is kept up to `prefix_bytes`, and a batch whose share does
not fit is walked again. Batches as small as these fit; `prefix_bytes: 0` keeps nothing and so counts the most that a
search of any batch size executes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bench.base import BenchSettings, Measurement, pixels_in_small
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.operations import Kind
from ekgsearch.fields import MOST, Pixels, Positive, Seed, Share
from ekgsearch.methods.base import (
    Candidate,
    Decision,
    Evaluation,
    GroupScores,
    mean_over_batches,
    sum_over_batches,
)
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings
from ekgsearch.methods.evaluate import PREFIX_BYTES, BatchEvaluator, SearchBatch, evaluations
from ekgsearch.methods.networks import TIE_TOLERANCE, FastNetworks
from ekgsearch.methods.section import LEAST_REDUCTION
from ekgsearch.records import Subnetwork
from ekgsearch.sections.net import NetName, network_error

T = TypeVar("T")


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["macs"]
    net: NetName = Field("resnet50", description="network of the zoo")
    num_classes: int = Field(1000, ge=2, le=65_536, description="classes")
    image_size: Pixels = Field(224, description="side of the images, pixels")
    images: int = Field(4, ge=2, le=MOST, description="images of noise")
    batch_size: Positive = Field(2, description="images per batch")
    reductions: tuple[Share, ...] = Field(
        (0.45, 0.55), min_length=1, description="shares of the MACs removed at which it is counted"
    )
    step: Share = Field(0.2, description="r of the search")
    slice_below: float = Field(0.9, ge=0, le=1, description="as search.slice_below")
    prefix_bytes: int = Field(
        PREFIX_BYTES,
        ge=0,
        le=2**63 - 1,
        description="memory for what scoring computed and candidates start from; the search's own",
    )
    seed: Seed = Field(0, description="seed of weights and images")

    @model_validator(mode="after")
    def _has_network(self) -> "Settings":
        if error := network_error(self.net, self.image_size):
            raise ValueError(f"net: {error}")
        return self

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """One iteration on two batches of small images."""
        return {
            "image_size": pixels_in_small(self.image_size),
            "images": min(self.images, 4),
            "batch_size": min(self.batch_size, 2),
            "reductions": (LEAST_REDUCTION,),
        }, ()


def run(settings: Settings) -> list[Measurement]:
    """Search to the largest reduction; report the counts at each."""
    graph, batches = noise(settings)
    counted = CountingEvaluator(
        BatchEvaluator(
            FastNetworks(graph, settings.slice_below),
            lambda images: images,
            batches,
            divisor=settings.images,
            prefix_bytes=settings.prefix_bytes,
        )
    )
    budget = set_budget(graph, reduction=max(settings.reductions), absolute=None, unit="macs", counter="macs")
    search = EkgSearch(graph, counted, budget, EkgSettings(step=settings.step, tie_tolerance=TIE_TOLERANCE))
    decisions = list(search.run())
    full = cost(graph, graph.full(), "macs").macs
    found = []
    for reduction in sorted(settings.reductions):
        last = next(index for index, decision in enumerate(decisions) if decision.macs <= (1 - reduction) * full)
        case = f"{settings.net}, {reduction:.0%} removed"
        executed = sum(macs.total for macs in counted.iterations[:last])
        naive = sum(naive_macs(graph, decision, settings.images) for decision in decisions[1 : last + 1])
        candidates = sum(len(decision.candidates) for decision in decisions[1 : last + 1])
        found += [
            Measurement.count(case, "iterations", "", last),
            Measurement.count(case, "candidates evaluated", "", candidates),
            Measurement.count(case, "naive, per image", "GMAC", naive / settings.images / 1e9),
            Measurement.count(case, "executed, per image", "GMAC", executed / settings.images / 1e9),
            Measurement.count(case, "naive / executed", "x", naive / executed),
        ]
    return found


@dataclass(slots=True)
class IterationMacs:
    """Convolution MACs of one iteration."""

    scores: int = 0
    evaluate: int = 0
    settle: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.scores + self.evaluate + self.settle


@dataclass
class CountingEvaluator:
    """A search's evaluator on batches of this process that counts what every iteration executes."""

    batches: BatchEvaluator
    iterations: list[IterationMacs] = field(default_factory=list)

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """Set the ensemble knowledge; not counted, it happens once."""
        return mean_over_batches(self.batches.begin(interim))

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Score channels; a new iteration begins."""
        answer, macs = count_macs(partial(self.batches.scores, current, count))
        self.iterations.append(IterationMacs(scores=macs))
        return sum_over_batches(answer)

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates."""
        answer, self.iterations[-1].evaluate = count_macs(partial(self.batches.evaluate, current, candidates))
        return evaluations(answer, len(candidates))

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Settle near ties."""
        answer, self.iterations[-1].settle = count_macs(partial(self.batches.settle, candidates))
        return evaluations(answer, len(candidates))


def count_macs(work: Callable[[], T]) -> tuple[T, int]:
    """Do some work and count the MACs of the convolutions that it executes, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        answer = work()
    by_operation = counter.get_flop_counts().get("Global", {})
    return answer, sum(flops for name, flops in by_operation.items() if "convolution" in str(name)) // 2


def naive_macs(graph: ChannelGraph, decision: Decision, images: int) -> int:
    """Convolution MACs of one iteration of the naive algorithm.

    Every candidate is one forward pass; the scores are one, and one backward pass that leaves out the layers in front
    of the first channel group's feature map, whose inputs need no gradient.
    """
    forward = backward = 0
    for path, layer in graph.layers.items():
        if layer.kind is Kind.CONV:
            macs = layer.positions * layer.module.get_parameter("weight").numel()
            forward += macs
            backward += macs if _follows_a_site(graph, path) else 0
    return images * (forward * (len(decision.candidates) + 1) + backward)


def noise(settings: Settings) -> tuple[ChannelGraph, list[SearchBatch]]:
    """A network with random weights, also in its norms, and batches of noise."""
    shape = (3, settings.image_size, settings.image_size)
    network = (
        build(zoo_factory(settings.net, settings.num_classes, shape), seed=settings.seed).eval().requires_grad_(False)
    )
    generator = torch.Generator().manual_seed(settings.seed)
    draw_norms(network, generator)
    images = torch.randn(settings.images, *shape, generator=generator)
    labels = torch.randint(0, settings.num_classes, (settings.images,), generator=generator)
    parts = zip(torch.split(images, settings.batch_size), torch.split(labels, settings.batch_size), strict=True)
    return analyse(network, shape), [SearchBatch(index, *part) for index, part in enumerate(parts)]


def draw_norms(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the scales and shifts of batch norms: at their initial values residual branches are closed, and all ties."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)


def _follows_a_site(graph: ChannelGraph, path: str) -> bool:
    """Whether a layer reads, however indirectly, a feature map at which importance is read."""
    sites = {site.node for site in graph.sites}
    waiting = [node for node in graph.trace.graph.nodes if node.op == "call_module" and node.target == path]
    seen = set(waiting)
    while waiting:
        for other in waiting.pop().all_input_nodes:
            if other.name in sites:
                return True
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return False
