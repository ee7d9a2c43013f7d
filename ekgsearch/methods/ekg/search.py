"""Ensemble knowledge guided search: cut, at each step, the channel group whose loss hurts the ensemble least."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import BudgetError, NumericsError
from ekgsearch.maths.otsu import trimmed_otsu
from ekgsearch.methods.base import (
    Candidate,
    CandidateOutcome,
    Decision,
    Evaluation,
    Evaluator,
    GroupScores,
)
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.ekg.contest import Contest
from ekgsearch.methods.ekg.quirks import Quirk
from ekgsearch.methods.ekg.reference import strategy_of
from ekgsearch.methods.ekg.section import Compete, Shortlist
from ekgsearch.methods.ekg.steps import coarse_step, importance_order
from ekgsearch.methods.ekg.strategy import Cut, Strategy
from ekgsearch.records import Subnetwork

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EkgSettings:
    """Choices of the search.

    Attributes:
        step: r, share of a private channel group that one iteration removes, in (0, 1).
        trim: share of the channel groups trimmed at each end before Otsu's threshold, in [0, 0.5).
        quirks: what is done as in the reference program; none by default.
        width_multiple: a cut leaves a multiple of so many channels; see `Strategy.multiple`.
        max_candidates: candidates that one iteration evaluates at most, those of the shortlist whose channels to
            remove have the lowest summed scores; None for the whole shortlist.
        shortlist: which channel groups have their next cut evaluated.
        compete: what candidates are compared by.
        tie_tolerance: candidates whose score is within this share of the lowest are evaluated again by the masked
            network before one is chosen, so that rounding of a fast evaluator decides nothing; 0 where the evaluator
            is the masked network or gives its bits.
    """

    step: float = 0.2
    trim: float = 0.2
    quirks: frozenset[Quirk] = frozenset()
    width_multiple: int = 1
    max_candidates: int | None = None
    shortlist: Shortlist = "otsu"
    compete: Compete = "score"
    tie_tolerance: float = 0.0

    @property
    def strategy(self) -> Strategy:
        """The rules that the search goes by."""
        return strategy_of(self.quirks, self.width_multiple)


def own_record(rate: Fraction, threshold: float | None) -> dict[str, Any]:
    """What a decision records beyond what every method does.

    Args:
        rate: width of the cut channel group as the step rule tracks it.
        threshold: trimmed Otsu threshold; None where all channel groups were tried.
    """
    return {"rate": str(rate), "threshold": threshold}


def rate_of(decision: Decision) -> Fraction:
    """Width of the channel group that a decision has cut, as the step rule tracks it."""
    return Fraction(decision.own["rate"])


class EkgSearch:
    """Greedy search of EKG (arXiv 2203.02651, algorithm 1).

    Each iteration scores every channel, shortlists the channel groups whose next cut looks cheapest, evaluates the
    shortlist on the search subset and takes the candidate with the lowest score (highest reward); its logits enter the
    ensemble knowledge when it is scored in turn. Weights never change. It differs from the reference program in keeping
    integer numbers of channels, true means over the images, and scores of exactly the channels that would go.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        evaluator: Evaluator,
        budget: Budget,
        settings: EkgSettings,
        groups: Sequence[ChannelGroup] | None = None,
    ) -> None:
        """Search a network.

        Args:
            graph: its channel groups.
            evaluator: evaluates sub-networks.
            budget: what to meet.
            settings: choices.
            groups: channel groups that may be cut; None for all.
        """
        self._graph = graph
        self._groups = graph.groups if groups is None else groups
        self._evaluator = evaluator
        self._budget = budget
        self._settings = settings
        self._strategy = settings.strategy

    def run(self, made: Sequence[Decision] = ()) -> Iterator[Decision]:
        """Yield every decision as it is made; decision 0 is the unpruned network.

        Args:
            made: decisions already committed, to continue from.

        Raises:
            BudgetError: no channel group can be cut further although the budget is not met.
            NumericsError: the current network gives no finite loss.
        """
        decisions = list(made)
        evaluation = self._evaluator.begin([decision.subnetwork for decision in decisions] or [self._graph.full()])
        if not decisions:
            decisions.append(self._unpruned(evaluation))
            yield decisions[0]
        rates = self.rates_after(decisions)
        current = decisions[-1]
        while not self._budget.is_met(current.macs, current.params):
            current = self.decide(current, rates)
            rates[current.group] = rate_of(current)
            yield current

    def rates_after(self, decisions: Sequence[Decision]) -> dict[str, Fraction]:
        """Width of every channel group as the step rule tracks it, after all decisions so far."""
        rates = {group.name: Fraction(1) for group in self._graph.groups}
        rates.update({decision.group: rate_of(decision) for decision in decisions if decision.group})
        return rates

    def decide(self, current: Decision, rates: Mapping[str, Fraction]) -> Decision:
        """Make one decision.

        Args:
            current: the decision before; only its sub-network, costs and iteration matter.
            rates: width of every channel group as the step rule tracks it.
        """
        scores = self._evaluator.scores(current.subnetwork, current.iteration + 1)
        _require_numbers(scores, current.iteration + 1)
        standing = self._strategy.standing(self._graph, current.subnetwork, scores)
        proposals = self._proposals(standing, rates, scores)
        doomed = {
            proposal.group: self._strategy.summed_score(standing, proposal, scores, rates[proposal.group])
            for proposal in proposals
        }
        threshold, candidates = self._shortlist(proposals, doomed)
        if not self._strategy.tries_what_costs_the_same:
            candidates = self._that_lower_the_cost(current, candidates)
        if not candidates:
            log.warning("iteration %d: the shortlist lowers no cost; trying all channel groups", current.iteration + 1)
            threshold, candidates = None, self._that_lower_the_cost(current, proposals)
        if not candidates:
            raise BudgetError(
                f"no channel group can be cut further in iteration {current.iteration + 1}, but the network still has "
                f"{self._budget.measured(current.macs, current.params):,} {self._budget.unit} against a budget of "
                f"{self._budget.limit:,.0f}; raise the budget"
            )
        candidates = self._cheapest(candidates, doomed)
        contest = self._contest(current, candidates, self._evaluator.evaluate(standing, candidates))
        near = contest.near_ties()
        if near:
            contest = contest.settled(near, self._evaluator.settle([candidates[position] for position in near]))
        winner = contest.winner(near, current.iteration + 1)
        outcomes = tuple(
            CandidateOutcome(candidate.group, candidate.num_kept, *self._costs(candidate.subnetwork), evaluation)
            for candidate, evaluation in zip(candidates, contest.evaluations, strict=True)
        )
        chosen = candidates[winner]
        before = dict(current.subnetwork.kept)
        return Decision(
            iteration=current.iteration + 1,
            group=chosen.group,
            changed=tuple(name for name, kept in chosen.subnetwork.kept if kept != before[name]),
            subnetwork=chosen.subnetwork,
            macs=outcomes[winner].macs,
            params=outcomes[winner].params,
            evaluation=contest.evaluations[winner],
            candidates=outcomes,
            own=own_record(chosen.rate, threshold) | ({} if contest.shares is None else {"standing": contest.standing}),
        )

    def _unpruned(self, evaluation: Evaluation) -> Decision:
        """Decision 0."""
        if not evaluation.is_finite:
            raise NumericsError(
                "the unpruned network has a loss that is not a finite number on the search subset; "
                "check the weights and the input normalisation"
            )
        full = self._graph.full()
        macs, params = self._costs(full)
        own = own_record(Fraction(1), None)
        return Decision(
            iteration=0, group="", changed=(), subnetwork=full, macs=macs, params=params, evaluation=evaluation, own=own
        )

    def _contest(
        self, current: Decision, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]
    ) -> Contest:
        """The contest of evaluated candidates, where it asks with what they save and where they start."""
        settings = self._settings
        if settings.compete == "score":
            return Contest(evaluations, settings.tie_tolerance)
        full, before = (
            self._budget.measured(*costs) for costs in (self._costs(self._graph.full()), (current.macs, current.params))
        )
        saved = [before - self._budget.measured(*self._costs(one.subnetwork)) for one in candidates]
        [standing] = self._evaluator.settle([Candidate(candidates[0].group, current.subnetwork)])
        return Contest(evaluations, settings.tie_tolerance, [cost / full for cost in saved], standing.score)

    def _proposals(self, current: Subnetwork, rates: Mapping[str, Fraction], scores: GroupScores) -> list[Candidate]:
        """The next cut of every channel group that has one, least important channels first."""
        proposals = []
        for group in self._groups:
            kept = current[group.name]
            step = coarse_step(group.size, group.uses, self._settings.step)
            rate, count = self._strategy.coarse(group.size, len(kept), rates[group.name], step)
            if self._strategy.proposes(len(kept), count, rates[group.name]):
                order = importance_order(scores[group.name], kept)
                proposals.append(self._refined(current, group, order, rate, count))
        return proposals

    def _refined(
        self, current: Subnetwork, group: ChannelGroup, order: list[int], rate: Fraction, count: int
    ) -> Candidate:
        """Cut to `rate` and so many channels, or, if that falls below the budget, to a width closer to it."""

        def at(to_rate: Fraction, num_kept: int) -> Candidate:
            return Candidate(group.name, current.replace(group.name, order[:num_kept]), to_rate)

        coarse = at(rate, count)
        if not self._budget.has_room_above(*self._costs(coarse.subnetwork)):
            return coarse
        return self._strategy.refined(Cut(group.size, len(order), at, self._is_met), rate, count)

    def _shortlist(
        self, proposals: list[Candidate], doomed: Mapping[str, float]
    ) -> tuple[float | None, list[Candidate]]:
        """Threshold and the proposals whose channels to remove have a summed score at or below it."""
        if self._settings.shortlist == "all":
            return None, proposals
        threshold = trimmed_otsu(list(doomed.values()), self._settings.trim)
        if threshold is None:
            return None, proposals
        return threshold, [proposal for proposal in proposals if doomed[proposal.group] <= threshold]

    def _cheapest(self, candidates: list[Candidate], doomed: Mapping[str, float]) -> list[Candidate]:
        """As many candidates as are evaluated at most, in their order."""
        ranked = sorted(range(len(candidates)), key=lambda position: doomed[candidates[position].group])
        return [candidates[position] for position in sorted(ranked[: self._settings.max_candidates])]

    def _that_lower_the_cost(self, current: Decision, candidates: list[Candidate]) -> list[Candidate]:
        before = self._budget.measured(current.macs, current.params)
        return [
            candidate for candidate in candidates if self._budget.measured(*self._costs(candidate.subnetwork)) < before
        ]

    def _is_met(self, candidate: Candidate) -> bool:
        return self._budget.is_met(*self._costs(candidate.subnetwork))

    def _costs(self, subnetwork: Subnetwork) -> tuple[int, int]:
        costs = cost(self._graph, subnetwork, self._budget.counter)
        return costs.macs, costs.params


def _require_numbers(scores: GroupScores, iteration: int) -> None:
    for name, importance in scores.items():
        if not np.isfinite(importance).all():
            raise NumericsError(
                f"iteration {iteration}: expected finite importance of every channel of {name}, found "
                f"{np.count_nonzero(~np.isfinite(importance))} of {len(importance)} that are not; check the weights "
                "and the input normalisation, or use search.precision fp32"
            )
