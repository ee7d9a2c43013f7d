"""The rules of the program published with the paper, where they differ from those of the paper."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.base import Candidate, GroupScores
from ekgsearch.methods.ekg.quirks import Quirk
from ekgsearch.methods.ekg.steps import StepRule, decimal, importance_order
from ekgsearch.methods.ekg.strategy import Cut, Strategy
from ekgsearch.records import Subnetwork


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

    quirks: frozenset[Quirk] = frozenset()

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

    def refined(self, cut: Cut, rate: Fraction, coarse: int) -> Candidate:
        """With `two_decimal_refinement`, the last step before a width of two decimals that misses the budget."""
        if "two_decimal_refinement" not in self.quirks:
            return Strategy.refined(self, cut, rate, coarse)
        candidate = cut.at(rate, coarse)
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


def strategy_of(quirks: Collection[Quirk], multiple: int = 1) -> Strategy:
    """The rules of the paper, or those of the program as far as they are asked for; see `Strategy.multiple`."""
    return Reference(multiple, frozenset(quirks)) if quirks else Strategy(multiple)


def two_decimal_rates(rate: Fraction, size: int) -> list[tuple[Fraction, Fraction]]:
    """Pairs (rate to try, rate to fall back to) of the quirk `two_decimal_refinement`, from the narrowest on."""
    start = float(rate)
    widths = np.arange(start, start + 0.2, 1 / size)
    return [(decimal(round(float(width), 2)), decimal(round(float(width) - 1 / size, 5))) for width in widths]
