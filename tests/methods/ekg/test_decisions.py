"""Single decisions that follow from given channel scores and evaluations: ties, shortlists and the last step."""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from local_evaluator import SETTINGS, budget_of

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.maths.otsu import trimmed_otsu
from ekgsearch.methods.base import Candidate, Decision, Evaluation, GroupScores
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.methods.ekg.steps import StepRule, coarse_step
from ekgsearch.records import Subnetwork


class Given:
    """Gives the same channel scores in every iteration, and evaluations by channel group."""

    def __init__(self, scores: GroupScores, by_group: Callable[[str], float], settled: dict[str, float]) -> None:
        self._scores, self._by_group, self._settled = scores, by_group, settled

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        return Evaluation(1.0, 1.0, 9, 41)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        return self._scores

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return [Evaluation(1.0, self._by_group(candidate.group), 9, 41) for candidate in candidates]

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return [Evaluation(1.0, self._settled[candidate.group], 9, 41) for candidate in candidates]


def decided(
    graph: ChannelGraph,
    scores: GroupScores,
    by_group: Callable[[str], float] = lambda group: 2.0,
    *,
    current: Subnetwork | None = None,
    rates: dict[str, Fraction] | None = None,
    settled: dict[str, float] | None = None,
    reduction: float = 0.5,
    **settings: Any,
) -> Decision:
    """The decision that follows from given scores and evaluations."""
    sub, budget = current or graph.full(), budget_of(graph, reduction)
    costs = cost(graph, sub, "macs")
    before = Decision(iteration=0, group="", changed=(), subnetwork=sub, macs=costs.macs, params=costs.params)
    search = EkgSearch(graph, Given(scores, by_group, settled or {}), budget, dataclasses.replace(SETTINGS, **settings))
    return search.decide(before, {name: Fraction(1) for name in sub.names} | (rates or {}))


def scores_of(graph: ChannelGraph, of_group: Callable[[int], float]) -> GroupScores:
    """Channel scores that are equal within each channel group."""
    return {group.name: np.full(group.size, of_group(place)) for place, group in enumerate(graph.groups)}


def tried(decision: Decision) -> list[str]:
    return [outcome.group for outcome in decision.candidates]


def test_of_equal_candidates_the_first_wins_and_equal_sums_are_all_on_the_shortlist(graph: ChannelGraph) -> None:
    decision = decided(graph, scores_of(graph, lambda place: 0.0))
    assert decision.own["threshold"] == 0.0
    assert tried(decision) == [group.name for group in graph.groups]
    assert decision.group == graph.groups[0].name


def test_only_near_ties_are_settled_and_each_gets_its_own_evaluation(graph: ChannelGraph) -> None:
    scores, names = scores_of(graph, lambda place: 0.0), [group.name for group in graph.groups]
    clear = decided(graph, scores, lambda group: 2.0 + (group != names[4]), tie_tolerance=1e-6)
    assert clear.group == names[4]
    settled = {names[4]: 3.0, names[7]: 2.5}
    near = decided(graph, scores, lambda group: 2.0 + (group not in settled), tie_tolerance=1e-6, settled=settled)
    assert near.group == names[7]
    assert {
        outcome.group: outcome.evaluation.score for outcome in near.candidates if outcome.group in settled
    } == settled


@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_the_threshold_is_trimmed_as_the_settings_say(graph: ChannelGraph, trim: float) -> None:
    scores = scores_of(graph, lambda place: 2.0**place)
    doomed = []
    for group in graph.groups:
        kept = StepRule().num_kept(group.size, 1 - coarse_step(group.size, group.uses, SETTINGS.step))
        doomed.append(float(scores[group.name][kept:].sum()))
    assert trimmed_otsu(doomed, trim) != trimmed_otsu(doomed)
    assert decided(graph, scores, trim=trim).own["threshold"] == pytest.approx(trimmed_otsu(doomed, trim), rel=1e-12)


def test_channels_are_ranked_again_with_those_that_were_removed(graph: ChannelGraph) -> None:
    """A removed channel scores 0, ties with dead ones, and comes back for one of a higher index."""
    name = graph.groups[2].name
    size = graph.groups[2].size
    scores = scores_of(graph, lambda place: 1.0)
    scores[name][:4] = 0.0
    arguments = {"current": graph.full().replace(name, range(2, size)), "rates": {name: Fraction(size - 2, size)}}
    favourite = graph.groups[5].name
    by_group = lambda group: 2.0 - (group == favourite)  # noqa: E731 (shared by both calls)
    plain = decided(graph, scores, by_group, **arguments)
    assert plain.subnetwork[name] == tuple(range(2, size)) or plain.group == name
    quirk = decided(graph, scores, by_group, **arguments, quirks=frozenset({"rank_removed_channels"}))
    assert quirk.subnetwork[name] == (0, 1, *range(4, size))
    assert name in quirk.changed


def test_groups_are_judged_by_all_their_scores_until_they_are_cut_and_then_by_none(graph: ChannelGraph) -> None:
    scores = scores_of(graph, lambda place: float(place + 1))
    name = graph.groups[-1].name
    sums = {group.name: float(scores[group.name].sum()) for group in graph.groups}
    arguments = {
        "current": graph.full().replace(name, range(50)),
        "rates": {name: Fraction(50, 64)},
        "quirks": frozenset({"whole_vector_shortlist"}),
    }
    decision = decided(graph, scores, **arguments)
    threshold = trimmed_otsu(list((sums | {name: 0.0}).values()))
    assert threshold is not None
    assert threshold != trimmed_otsu(list(sums.values()))
    assert decision.own["threshold"] == pytest.approx(threshold, rel=1e-12)
    assert tried(decision) == [one for one, value in sums.items() if value <= threshold or one == name]


@pytest.mark.parametrize("quirks", [frozenset(), frozenset({"two_decimal_refinement"})])
def test_the_last_step_takes_no_more_than_the_budget_asks_for(graph: ChannelGraph, quirks: frozenset) -> None:
    """With the quirk, widths of two decimals are tried: up to a channel more or less."""
    decision = decided(graph, scores_of(graph, lambda place: 0.0), reduction=0.02, quirks=quirks)
    limit = budget_of(graph, 0.02).limit
    widened = 0
    for outcome in decision.candidates:
        group = graph.group(outcome.group)
        coarse = StepRule().num_kept(group.size, 1 - coarse_step(group.size, group.uses, SETTINGS.step))
        costs = [
            cost(graph, graph.full().replace(group.name, range(kept)), "macs").macs for kept in range(1, group.size)
        ]
        widest = max((kept for kept, macs in enumerate(costs, 1) if macs <= limit), default=coarse)
        assert abs(outcome.num_kept - max(widest, coarse)) <= len(quirks), group.name
        widened += outcome.num_kept > coarse
    assert widened > 3
