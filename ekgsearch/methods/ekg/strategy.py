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
    """The rules of EKG (arXiv 2203.02651), with whole numbers of channels and scores of exactly those that would go."""

    @property
    def rule(self) -> StepRule:
        """Kept numbers and rates."""
        return StepRule()

    def standing(self, graph: ChannelGraph, current: Subnetwork, scores: GroupScores) -> Subnetwork:
        """The sub-network that candidates are cut from."""
        return current

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

    def refined(self, cut: Cut, rate: Fraction) -> Candidate:
        """The widest cut that meets the budget, where the coarse one, to `rate`, falls below it."""
        coarse = self.rule.num_kept(cut.size, rate)
        candidate = cut.at(rate, coarse)
        for count in range(coarse + 1, cut.num_kept):
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
