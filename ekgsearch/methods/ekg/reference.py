"""The rules of the program published with the paper, where they differ from those of the paper."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.base import Candidate, GroupScores
from ekgsearch.methods.ekg.steps import StepRule, decimal, importance_order
from ekgsearch.methods.ekg.strategy import Cut, Strategy
from ekgsearch.records import NormMode, Subnetwork

Quirk = Literal[
    "halved_warmup_divisor",
    "nominal_batch_means",
    "rank_removed_channels",
    "rounded_rates",
    "sequential_statistics",
    "two_decimal_refinement",
    "unchanged_candidates",
    "whole_vector_shortlist",
]
"""What the program published with the paper does differently where a number depends on it.

halved_warmup_divisor: the warm-up divides the loss of a batch by 128, half its images; this doubles the gradient, not
the weight decay. nominal_batch_means: a batch's sums are divided by the nominal batch size, also for a short last
batch, and the batches are averaged as equals. rank_removed_channels: all channels are ranked anew in every iteration;
removed ones score 0 and so tie with dead ones. rounded_rates: rates are rounded to five decimals and multiplied in
float32. sequential_statistics: batch statistics are float32 sums over one element after the other, as its CPU kernels
form them. two_decimal_refinement: the last step tries widths rounded to two decimals. unchanged_candidates: a channel
group is a candidate until its rate is 0, although its last step may remove nothing. whole_vector_shortlist: a channel
group that was never cut is judged by the sum of all its scores, one that was cut by 0, and so is always on the
shortlist.
"""

QUIRKS: tuple[Quirk, ...] = get_args(Quirk)
"""All of them: the program that was published with the paper."""

REFERENCE = "reference"
"""Value of `search.quirks` in a job that stands for that program."""


def expand_reference(fields: Any) -> Any:
    """Write out ``search.quirks: reference`` in the fields of a job: all quirks, and the counter `ekg`.

    The padding that goes with them depends on the weights: `default_padding`.

    Raises:
        ValueError: the fields name another counter or padding.
    """
    match fields:
        case {"search": {"quirks": quirks, **search}} if quirks == REFERENCE:
            pass
        case _:
            return fields
    if search.setdefault("counter", "ekg") != "ekg":
        raise ValueError(
            f"search.counter = {search['counter']}, but search.quirks reference counts with `ekg`; leave the counter "
            "out, or list the quirks that you want one by one"
        )
    net = fields.get("net")
    if isinstance(net, dict) and net.get("padding") not in (None, "tf_same"):
        raise ValueError(
            f"net.padding = {net['padding']}, but search.quirks reference pads as tf_same; leave the padding out, or "
            "list the quirks that you want one by one"
        )
    return {**fields, "search": {**search, "quirks": QUIRKS}}


def default_padding(quirks: Collection[Quirk]) -> Literal["torch", "tf_same"]:
    """Padding of a network where neither the job nor the sidecar of its weights says one.

    The program published with the paper pads as TensorFlow does; so does a search that has all of its quirks.
    """
    return "tf_same" if set(QUIRKS) <= set(quirks) else "torch"


@dataclass(frozen=True, slots=True)
class RoundedRates(StepRule):
    """The quirk `rounded_rates`; on the published configurations the numbers are those of the exact rule."""

    def num_kept(self, size: int, rate: Fraction) -> int:
        """Channels kept of `size` at a rate in 0..1."""
        return max(1, math.ceil(np.float32(size) * np.float32(float(rate))))

    def narrowed(self, rate: Fraction, step: Fraction) -> Fraction:
        """The rate one step further, never below 0."""
        return max(Fraction(0), decimal(round(float(rate) - float(step), 5)))


@dataclass(frozen=True, slots=True)
class Reference(Strategy):
    """The rules of the published program, as far as they are asked for.

    Attributes:
        quirks: which of them.
    """

    quirks: frozenset[Quirk]

    @property
    def rule(self) -> StepRule:
        """Kept numbers and rates."""
        return RoundedRates() if "rounded_rates" in self.quirks else StepRule()

    def standing(self, graph: ChannelGraph, current: Subnetwork, scores: GroupScores) -> Subnetwork:
        """With `rank_removed_channels`, as many channels as now, the best of all."""
        if "rank_removed_channels" not in self.quirks:
            return current
        return Subnetwork.of(
            {
                group.name: importance_order(scores[group.name], range(group.size))[: len(current[group.name])]
                for group in graph.groups
            }
        )

    def proposes(self, num_kept: int, num_after: int, rate: Fraction) -> bool:
        """With `unchanged_candidates`, until the rate is 0."""
        return num_after < num_kept or ("unchanged_candidates" in self.quirks and rate > 0)

    @property
    def tries_what_costs_the_same(self) -> bool:
        """With `unchanged_candidates`, it is."""
        return "unchanged_candidates" in self.quirks

    def refined(self, cut: Cut, rate: Fraction) -> Candidate:
        """With `two_decimal_refinement`, the last step before a width of two decimals that misses the budget."""
        if "two_decimal_refinement" not in self.quirks:
            return Strategy.refined(self, cut, rate)
        candidate = cut.at(rate, self.rule.num_kept(cut.size, rate))
        for tried, fallback in two_decimal_rates(rate, cut.size):
            candidate = cut.at(tried, self.rule.num_kept(cut.size, tried))
            if not cut.is_met(candidate):
                return cut.at(fallback, self.rule.num_kept(cut.size, fallback))
        return candidate

    def summed_score(self, current: Subnetwork, proposal: Candidate, scores: GroupScores, rate: Fraction) -> float:
        """With `whole_vector_shortlist`, the sum of all scores where the channel group was never cut, else 0."""
        if "whole_vector_shortlist" not in self.quirks:
            return Strategy.summed_score(self, current, proposal, scores, rate)
        values = scores[proposal.group]
        return float(values.sum()) if round((1 - rate) * len(values)) == 0 else 0.0


def strategy_of(quirks: Collection[Quirk]) -> Strategy:
    """The rules of the paper, or those of the program as far as they are asked for."""
    return Reference(frozenset(quirks)) if quirks else Strategy()


def two_decimal_rates(rate: Fraction, size: int) -> list[tuple[Fraction, Fraction]]:
    """Pairs (rate to try, rate to fall back to) of the quirk `two_decimal_refinement`, from the narrowest on."""
    start = float(rate)
    widths = np.arange(start, start + 0.2, 1 / size)
    return [(decimal(round(float(width), 2)), decimal(round(float(width) - 1 / size, 5))) for width in widths]


def nominal_batch(quirks: Collection[Quirk], batch_size: int) -> int | None:
    """With `nominal_batch_means`, what every batch counts as; else None, for the true number of its images."""
    return batch_size if "nominal_batch_means" in quirks else None


def norm_mode(quirks: Collection[Quirk]) -> NormMode:
    """How batch norms are computed: with `sequential_statistics` by sums over one element after the other."""
    return "batch_sequential" if "sequential_statistics" in quirks else "batch"


def warmup_factor(quirks: Collection[Quirk]) -> int:
    """What the gradient of the warm-up's loss is multiplied by: 2 with `halved_warmup_divisor`, else 1."""
    return 2 if "halved_warmup_divisor" in quirks else 1
