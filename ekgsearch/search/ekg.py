"""Ensemble knowledge guided search: cut, at each step, the channel group whose loss hurts the ensemble least."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import BudgetError, NumericsError
from ekgsearch.maths.otsu import trimmed_otsu
from ekgsearch.records import Subnetwork
from ekgsearch.search.base import Candidate, CandidateOutcome, Decision, Evaluation, Evaluator, GroupScores
from ekgsearch.search.budget import Budget
from ekgsearch.search.steps import coarse_step, importance_order, narrowed, num_kept

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EkgSettings:
    """Choices of the search.

    Attributes:
        step: r, share of a private channel group that one iteration removes, in (0, 1).
        trim: share of the channel groups trimmed at each end before Otsu's threshold, in [0, 0.5).
    """

    step: float = 0.2
    trim: float = 0.2


class EkgSearch:
    """Greedy search of EKG (arXiv 2203.02651, algorithm 1).

    Each iteration scores every channel, shortlists the channel groups whose next cut looks cheapest, evaluates the
    shortlist on the search subset, takes the candidate with the lowest score (highest reward) and averages its logits
    into the ensemble knowledge. Weights never change. It differs from the reference program in keeping integer
    numbers of channels, true means over the images, and scores of exactly the channels that would go.
    """

    def __init__(self, graph: ChannelGraph, evaluator: Evaluator, budget: Budget, settings: EkgSettings) -> None:
        self._graph = graph
        self._evaluator = evaluator
        self._budget = budget
        self._settings = settings

    def run(self, history: Sequence[Decision] = ()) -> Iterator[Decision]:
        """Yield every decision as it is made; decision 0 is the unpruned network.

        Args:
            history: decisions already committed, to continue from.

        Raises:
            BudgetError: no channel group can be cut further although the budget is not met.
            NumericsError: the current network gives no finite loss.
        """
        decisions = list(history)
        evaluation = self._evaluator.begin([decision.subnetwork for decision in decisions] or [self._graph.full()])
        if not decisions:
            full = self._graph.full()
            decisions.append(Decision(0, "", full, Fraction(1), None, evaluation, *self._costs(full)))
            _require_finite(decisions[0])
            yield decisions[0]
        rates = {group.name: Fraction(1) for group in self._graph.groups}
        rates.update({decision.group: decision.rate for decision in decisions if decision.group})
        current = decisions[-1]
        while not self._budget.is_met(current.macs, current.params):
            current = self._iterate(current, rates)
            rates[current.group] = current.rate
            yield current

    def _iterate(self, current: Decision, rates: dict[str, Fraction]) -> Decision:
        scores = self._evaluator.scores(current.subnetwork)
        proposals = self._proposals(current, rates, scores)
        threshold, candidates = self._shortlist(current.subnetwork, proposals, scores)
        candidates = self._that_lower_the_cost(current, candidates)
        if not candidates:
            log.warning("iteration %d: the shortlist lowers no cost; trying all channel groups", current.iteration + 1)
            threshold, candidates = None, self._that_lower_the_cost(current, proposals)
        if not candidates:
            raise BudgetError(
                f"no channel group can be cut further in iteration {current.iteration + 1}, but the network still has "
                f"{self._budget.measured(current.macs, current.params):,} {self._budget.unit} against a budget of "
                f"{self._budget.limit:,}; raise the budget"
            )
        evaluations = self._evaluator.evaluate(current.subnetwork, candidates)
        winner = _lowest_score(evaluations, current.iteration + 1)
        self._evaluator.commit(winner)
        outcomes = tuple(
            CandidateOutcome(candidate.group, candidate.num_kept, *self._costs(candidate.subnetwork), evaluation)
            for candidate, evaluation in zip(candidates, evaluations, strict=True)
        )
        chosen = candidates[winner]
        return Decision(
            current.iteration + 1,
            chosen.group,
            chosen.subnetwork,
            chosen.rate,
            threshold,
            evaluations[winner],
            outcomes[winner].macs,
            outcomes[winner].params,
            outcomes,
        )

    def _proposals(self, current: Decision, rates: dict[str, Fraction], scores: GroupScores) -> list[Candidate]:
        """The next cut of every channel group that has one, least important channels first."""
        proposals = []
        for group in self._graph.groups:
            kept = current.subnetwork[group.name]
            rate = narrowed(rates[group.name], coarse_step(group.size, group.uses, self._settings.step))
            if num_kept(group.size, rate) < len(kept):
                order = importance_order(scores[group.name], kept)
                proposals.append(self._refined(current.subnetwork, group, order, rate))
        return proposals

    def _refined(self, current: Subnetwork, group: ChannelGroup, order: list[int], rate: Fraction) -> Candidate:
        """Cut to `rate`, or, if that falls below the budget, to the widest number of channels that meets it."""
        coarse = num_kept(group.size, rate)
        candidate = Candidate(group.name, current.replace(group.name, order[:coarse]), rate)
        if not self._budget.has_room_above(*self._costs(candidate.subnetwork)):
            return candidate
        for count in range(coarse + 1, len(order)):
            wider = current.replace(group.name, order[:count])
            if not self._budget.is_met(*self._costs(wider)):
                break
            candidate = Candidate(group.name, wider, Fraction(count, group.size))
        return candidate

    def _shortlist(
        self, current: Subnetwork, proposals: list[Candidate], scores: GroupScores
    ) -> tuple[float | None, list[Candidate]]:
        """Threshold and the proposals whose channels to remove have a summed score at or below it."""
        doomed = {}
        for proposal in proposals:
            removed = set(current[proposal.group]) - set(proposal.subnetwork[proposal.group])
            doomed[proposal.group] = math.fsum(scores[proposal.group][channel] for channel in removed)
        threshold = trimmed_otsu(list(doomed.values()), self._settings.trim)
        if threshold is None:
            return None, proposals
        return threshold, [proposal for proposal in proposals if doomed[proposal.group] <= threshold]

    def _that_lower_the_cost(self, current: Decision, candidates: list[Candidate]) -> list[Candidate]:
        before = self._budget.measured(current.macs, current.params)
        return [
            candidate for candidate in candidates if self._budget.measured(*self._costs(candidate.subnetwork)) < before
        ]

    def _costs(self, subnetwork: Subnetwork) -> tuple[int, int]:
        costs = cost(self._graph, subnetwork, self._budget.counter)
        return costs.macs, costs.params


def _lowest_score(evaluations: Sequence[Evaluation], iteration: int) -> int:
    """Position of the lowest finite score, the first at a tie."""
    finite = [position for position, evaluation in enumerate(evaluations) if evaluation.is_finite]
    if not finite:
        raise NumericsError(
            f"all {len(evaluations)} candidates of iteration {iteration} have a loss that is not a finite number; "
            "check the weights and the input normalisation"
        )
    return min(finite, key=lambda position: evaluations[position].score)


def _require_finite(decision: Decision) -> None:
    if not decision.evaluation.is_finite:
        raise NumericsError(
            "the unpruned network has a loss that is not a finite number on the search subset; "
            "check the weights and the input normalisation"
        )
