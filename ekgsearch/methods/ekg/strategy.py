"""Rules by which the search ranks channels, proposes cuts and judges them; here those of the paper."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.base import Candidate, GroupScores
from ekgsearch.methods.ekg.steps import StepRule
from ekgsearch.records import Subnetwork


@dataclass(frozen=True, slots=True)
class Cut:
    """Cuts of one channel group: what they leave, and whether that meets the budget.

    Attributes:
        size: channels of the group in the unpruned network.
        num_kept: channels that it keeps before the cut.
        at: the candidate that keeps so many channels, at a rate as the step rule tracks it.
        is_met: whether a candidate meets the budget.
    """

    size: int
    num_kept: int
    at: Callable[[Fraction, int], Candidate]
    is_met: Callable[[Candidate], bool]


@dataclass(frozen=True, slots=True)
class Strategy:
    """The rules of EKG (arXiv 2203.02651), with whole numbers of channels and scores of exactly those that would go.

    Attributes:
        multiple: a cut leaves a multiple of so many channels, or, of a channel group with fewer, what it has.
    """

    multiple: int = 1

    @property
    def rule(self) -> StepRule:
        """Kept numbers and rates."""
        return StepRule()

    def standing(self, graph: ChannelGraph, current: Subnetwork, scores: GroupScores) -> Subnetwork:
        """The sub-network that candidates are cut from."""
        return current

    def coarse(self, size: int, num_kept: int, rate: Fraction, step: Fraction) -> tuple[Fraction, int]:
        """Width of a channel group after its next cut, as the step rule tracks it, and the channels that it keeps.

        With a multiple the width is rounded up to one, and is one less where that would leave it as it is.

        Args:
            size: channels of the group in the unpruned network.
            num_kept: channels that it keeps.
            rate: its width as the step rule tracks it.
            step: what the cut takes off it.
        """
        narrowed = self.rule.narrowed(rate, step)
        count = self.rule.num_kept(size, narrowed)
        if self.multiple == 1:
            return narrowed, count
        above, below = -(-count // self.multiple), (num_kept - 1) // self.multiple
        count = max(self.multiple * min(above, below), min(self.multiple, num_kept))
        return Fraction(count, size), count

    def proposes(self, num_kept: int, num_after: int, rate: Fraction) -> bool:
        """Whether a channel group is cut in this iteration.

        Args:
            num_kept: channels that it keeps.
            num_after: channels that it would keep.
            rate: its width as the step rule tracks it.
        """
        return num_after < num_kept

    @property
    def tries_what_costs_the_same(self) -> bool:
        """Whether a candidate is evaluated although it lowers no cost."""
        return False

    def refined(self, cut: Cut, rate: Fraction, coarse: int) -> Candidate:
        """The widest cut that meets the budget, where the coarse one, to so many channels, falls below it."""
        candidate = cut.at(rate, coarse)
        for count in range(coarse + self.multiple, cut.num_kept, self.multiple):
            wider = cut.at(Fraction(count, cut.size), count)
            if not cut.is_met(wider):
                break
            candidate = wider
        return candidate

    def summed_score(self, current: Subnetwork, proposal: Candidate, scores: GroupScores, rate: Fraction) -> float:
        """What a proposal is shortlisted by: the summed score of the channels that it removes.

        Args:
            current: the sub-network that it is cut from.
            proposal: the cut.
            scores: of all channels.
            rate: width of the channel group before it.
        """
        name = proposal.group
        removed = set(current[name]) - set(proposal.subnetwork[name])
        return math.fsum(scores[name][channel] for channel in removed)
