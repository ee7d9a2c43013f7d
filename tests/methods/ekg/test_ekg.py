"""The search on a small network: the published rules, and what must hold in every iteration."""

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from local_evaluator import SETTINGS, LocalEvaluator, batch_evaluator, budget_of, evaluator_of, records
from torch import nn

from ekgsearch.channels.cost import cost, reachable
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.members import Site
from ekgsearch.errors import BudgetError, NumericsError
from ekgsearch.maths.knowledge import cross_entropy_terms
from ekgsearch.maths.otsu import trimmed_otsu
from ekgsearch.methods.base import (
    Candidate,
    Decision,
    Evaluation,
    GroupScores,
    decisions_from_records,
    sum_over_batches,
)
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.ekg.quirks import QUIRKS
from ekgsearch.methods.ekg.reach import depends_on_budget
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings, rate_of
from ekgsearch.methods.ekg.section import EkgSection
from ekgsearch.methods.ekg.steps import StepRule, coarse_step
from ekgsearch.methods.evaluate import SearchBatch
from ekgsearch.methods.networks import NaiveNetworks
from ekgsearch.records import Subnetwork


def test_masks_are_nested_and_the_cost_falls_in_every_iteration(made: list[Decision]) -> None:
    assert len(made) > 3
    for before, after in itertools.pairwise(made):
        changed = [name for name in before.subnetwork.names if before.subnetwork[name] != after.subnetwork[name]]
        assert changed == [after.group]
        assert set(after.subnetwork[after.group]) < set(before.subnetwork[after.group])
        assert after.macs < before.macs


def test_the_budget_is_met_from_below_within_one_filter(graph: ChannelGraph, made: list[Decision]) -> None:
    budget, last = budget_of(graph), made[-1]
    assert last.macs <= budget.limit
    assert all(decision.macs > budget.limit for decision in made[:-1])
    removed = set(made[-2].subnetwork[last.group]) - set(last.subnetwork[last.group])
    one_more = last.subnetwork.replace(last.group, [*last.subnetwork[last.group], min(removed)])
    assert cost(graph, one_more, "macs").macs > budget.limit or one_more == made[-2].subnetwork


def test_the_winner_has_the_lowest_score_and_candidates_are_the_shortlist(made: list[Decision]) -> None:
    for decision in made[1:]:
        scores = [outcome.evaluation.score for outcome in decision.candidates]
        winner = scores.index(min(scores))
        assert decision.candidates[winner].group == decision.group
        assert decision.evaluation == decision.candidates[winner].evaluation
        assert 1 <= len(decision.candidates) <= 12


def test_candidates_can_compete_by_what_a_rise_of_the_score_saves(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    settings = dataclasses.replace(SETTINGS, compete="score_per_cost")
    evaluator = evaluator_of(graph, batches, [[0, 1, 2]])
    made = list(EkgSearch(graph, evaluator, budget_of(graph), settings).run())
    full, differ = made[0].macs, 0
    for before, decision in itertools.pairwise(made):
        prices = [
            (
                max(0.0, outcome.evaluation.score - decision.own["standing"]) * full / (before.macs - outcome.macs),
                outcome.macs,
            )
            for outcome in decision.candidates
        ]
        assert decision.candidates[prices.index(min(prices))].group == decision.group
        differ += decision.evaluation.score > min(outcome.evaluation.score for outcome in decision.candidates)
    assert differ, "the lowest score would have won everywhere"
    assert made[-1].macs <= budget_of(graph).limit
    again = list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), settings).run(made[:3]))
    assert records(made[3:]) == records(again), "it goes on from its journal"


def test_every_candidate_is_one_step_of_the_published_size(graph: ChannelGraph, made: list[Decision]) -> None:
    rates = {group.name: Fraction(1) for group in graph.groups}
    for decision in made[1:-1]:
        for outcome in decision.candidates:
            group = graph.group(outcome.group)
            rate = rates[outcome.group] - coarse_step(group.size, group.uses, SETTINGS.step)
            assert outcome.num_kept == StepRule().num_kept(group.size, rate)
        rates[decision.group] = rate_of(decision)


def test_near_ties_are_settled_by_the_masked_network(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    asked: list[list[str]] = []

    class Rounding(LocalEvaluator):
        """All candidates tie up to rounding; the masked network prefers the last one."""

        def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
            return [Evaluation(1.0, 2.0 + 1e-9 * position, 9, 41) for position in range(len(candidates))]

        def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
            asked.append([candidate.group for candidate in candidates])
            return [Evaluation(1.0, 2.0 - 1e-9 * position, 9, 41) for position in range(len(candidates))]

    parts = evaluator_of(graph, batches, [[0, 1, 2]]).parts
    settings = dataclasses.replace(SETTINGS, tie_tolerance=1e-6)
    decision = next(itertools.islice(EkgSearch(graph, Rounding(parts), budget_of(graph), settings).run(), 1, None))
    assert asked == [[outcome.group for outcome in decision.candidates]]
    assert decision.group == decision.candidates[-1].group
    untouched = next(itertools.islice(EkgSearch(graph, Rounding(parts), budget_of(graph), SETTINGS).run(), 1, None))
    assert untouched.group == untouched.candidates[0].group
    assert len(asked) == 1

    class Coarse(Rounding):
        """An approximate evaluation that lies below the masked network's throughout."""

        def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
            scores = [1.0, 1.0] + [1.5] * (len(candidates) - 2)
            return [Evaluation(1.0, score, 9, 41) for score in scores]

    decision = next(itertools.islice(EkgSearch(graph, Coarse(parts), budget_of(graph), settings).run(), 1, None))
    assert decision.group == decision.candidates[1].group, "1.5 is not lower than what the masked network says"


def test_a_search_continues_from_its_records_in_any_iteration(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    for stop in (1, len(made) // 2, len(made) - 1):
        before = decisions_from_records(records(made[:stop]), graph.full())
        search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), SETTINGS)
        assert records(before + list(search.run(before))) == records(made)


def test_importance_is_the_slope_of_the_score_along_a_gate_on_a_channel(
    network: nn.Module, batches: list[SearchBatch]
) -> None:
    """Central differences in double precision, for a channel of every channel group at each of its sites."""
    graph = analyse(copy.deepcopy(network).double(), (3, 8, 8))
    batches = [dataclasses.replace(batch, pixels=batch.pixels.double()) for batch in batches]
    evaluator, masked, full = batch_evaluator(NaiveNetworks(graph), batches), MaskedNetwork(graph), graph.full()
    sub = full.replace("layer1.0.conv1", range(2, 14)).replace("layer3.0.conv1", range(40))
    evaluator.begin([full])
    scores = sum_over_batches(evaluator.scores(sub, 2))
    weights, masks = masked.weights(sub), masked.masks(sub)

    def score(batch: SearchBatch, site: Site, channel: int, gate: float) -> float:
        mask = masks.get(site.node, torch.ones(len(site.classes), dtype=torch.float64)).clone()
        mask[site.classes == channel] *= gate
        logits, _ = masked.run(batch.pixels, weights, {**masks, site.node: mask})
        to_label, to_teacher = cross_entropy_terms(logits, batch.labels, evaluator.knowledge(batch.index))
        return float((to_label + to_teacher).sum() / 41)

    step = 1e-5
    for group in graph.groups:
        channel, expected = sub[group.name][-1], 0.0
        place = int(graph.group_classes[group.name][channel])
        for site, batch in itertools.product((site for site in graph.sites if site.node in group.sites), batches):
            expected += abs(score(batch, site, place, 1 + step) - score(batch, site, place, 1 - step)) / (2 * step)
        assert scores[group.name][channel] == pytest.approx(expected, rel=1e-5, abs=1e-9), group.name


def test_the_first_shortlist_holds_the_groups_whose_next_channels_matter_least_in_sum(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    """Sums, threshold and shortlist are taken here from the channel scores of the naive networks."""
    evaluator = batch_evaluator(NaiveNetworks(graph), batches)
    evaluator.begin([graph.full()])
    scores = sum_over_batches(evaluator.scores(graph.full(), 1))
    doomed = []
    for group in graph.groups:
        kept = StepRule().num_kept(group.size, 1 - coarse_step(group.size, group.uses, SETTINGS.step))
        doomed.append(float(np.sort(scores[group.name])[: group.size - kept].sum()))
    threshold = trimmed_otsu(doomed)
    assert threshold is not None
    assert made[1].own["threshold"] == pytest.approx(threshold, rel=1e-12)
    expected = [group.name for group, value in zip(graph.groups, doomed, strict=True) if value <= threshold]
    assert [outcome.group for outcome in made[1].candidates] == expected


def test_without_a_shortlist_every_channel_group_is_tried(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    settings = dataclasses.replace(SETTINGS, shortlist="all")
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), settings)
    first = list(itertools.islice(search.run(), 2))[1]
    assert [outcome.group for outcome in first.candidates] == [group.name for group in graph.groups]
    assert first.own["threshold"] is None


def test_a_preset_gives_values_to_the_fields_that_are_left_out() -> None:
    chosen = EkgSection(method="ekg", reduction=0.5, preset="private_l2")
    assert (chosen.groups, chosen.criterion, chosen.shortlist) == ("private", "l2", "all")
    assert EkgSection(method="ekg", reduction=0.5, preset="private_l2", groups="all").groups == "all"
    default = EkgSection(method="ekg", reduction=0.5)
    assert (default.groups, default.criterion, default.shortlist) == ("all", "taylor_reward", "otsu")


def test_of_a_shortlist_those_are_evaluated_whose_channels_matter_least(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    settings = dataclasses.replace(SETTINGS, max_candidates=2)
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), settings)
    decision = list(itertools.islice(search.run(), 2))[1]
    evaluator = batch_evaluator(NaiveNetworks(graph), batches)
    evaluator.begin([graph.full()])
    scores = sum_over_batches(evaluator.scores(graph.full(), 1))
    sums = {
        outcome.group: float(
            np.sort(scores[outcome.group])[: graph.full().num_kept[outcome.group] - outcome.num_kept].sum()
        )
        for outcome in made[1].candidates
    }
    assert len(sums) > 2
    expected = sorted(sorted(sums, key=sums.__getitem__)[:2], key=list(sums).index)
    assert [outcome.group for outcome in decision.candidates] == expected
    assert decision.own["threshold"] == made[1].own["threshold"]


@pytest.mark.parametrize(("unit", "reduction"), [("params", 0.6), ("macs", 0.93)])
def test_other_budgets_are_met_as_well(
    graph: ChannelGraph, batches: list[SearchBatch], unit: str, reduction: float
) -> None:
    budget = budget_of(graph, reduction, unit)
    last = list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget, SETTINGS).run())[-1]
    assert budget.is_met(last.macs, last.params)


def test_widths_are_multiples_where_that_is_asked_for(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    settings, budget = dataclasses.replace(SETTINGS, width_multiple=4), budget_of(graph, 0.6)

    def made(before: Sequence[Decision] = ()) -> list[Decision]:
        return list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget, settings).run(before))

    decisions = made()
    assert budget.is_met(decisions[-1].macs, decisions[-1].params)
    sizes = {group.name: group.size for group in graph.groups}
    for decision in decisions:
        for name, kept in decision.subnetwork.kept:
            assert len(kept) % 4 == 0 or len(kept) == sizes[name], (decision.iteration, name)
    changed = decisions[-1].group
    wider = len(decisions[-1].subnetwork[changed]) + 4
    before = decisions[-2].subnetwork
    if wider < len(before[changed]):
        costs = cost(graph, before.replace(changed, before[changed][:wider]), "macs")
        assert not budget.is_met(costs.macs, costs.params), "the last cut is the widest multiple that meets the budget"
    half = len(decisions) // 2
    assert decisions[:half] + made(decisions[:half]) == decisions
    free = [depends_on_budget(graph, budget, settings, decisions[:count]) for count in range(1, len(decisions))]
    assert free == sorted(free), "once the budget has a say it keeps it"
    other = list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph, 0.7), settings).run())
    common = free.index(True) if True in free else len(decisions)
    assert other[: common + 1] == decisions[: common + 1]


def test_a_budget_that_multiples_do_not_reach_is_refused_before_the_search(graph: ChannelGraph) -> None:
    least = reachable(graph, "macs", least=4)
    assert least.macs > reachable(graph, "macs").macs
    with pytest.raises(BudgetError, match=f"can be cut down to {least.macs:,}"):
        set_budget(graph, reduction=None, absolute=least.macs - 1, unit="macs", counter="macs", least_width=4)


def test_a_budget_out_of_reach_is_refused_with_the_range(graph: ChannelGraph) -> None:
    with pytest.raises(BudgetError, match=r"cannot be reached.*a reduction of at most 0\.9"):
        budget_of(graph, 0.9999)
    with pytest.raises(BudgetError, match="cannot be reached"):
        set_budget(graph, reduction=None, absolute=10**12, unit="macs", counter="macs")


def test_candidates_that_are_not_finite_are_recorded_and_cannot_win(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    class Poisoned(LocalEvaluator):
        """The first candidate has no finite loss."""

        def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
            found = super().evaluate(current, candidates)
            return [Evaluation(float("nan"), float("nan"), 0, 41), *found[1:]]

    evaluator = Poisoned(evaluator_of(graph, batches, [[0, 1, 2]]).parts)
    decision = next(itertools.islice(EkgSearch(graph, evaluator, budget_of(graph), SETTINGS).run(), 1, None))
    assert decision.group != decision.candidates[0].group
    assert decision.to_record()["candidates"][0]["score"] is None
    restored = decisions_from_records([decision.to_record()], graph.full())[0]
    assert not restored.candidates[0].evaluation.is_finite

    class AllPoisoned(LocalEvaluator):
        def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
            return [Evaluation(float("inf"), float("inf"), 0, 41) for _ in candidates]

    broken = AllPoisoned(evaluator_of(graph, batches, [[0, 1, 2]]).parts)
    with pytest.raises(NumericsError, match="iteration 1"):
        list(EkgSearch(graph, broken, budget_of(graph), SETTINGS).run())

    class NoScores(LocalEvaluator):
        def scores(self, current: Subnetwork, count: int) -> GroupScores:
            return {name: found * np.nan for name, found in super().scores(current, count).items()}

    with pytest.raises(NumericsError, match="expected finite importance of every channel of"):
        list(EkgSearch(graph, NoScores(broken.parts), budget_of(graph), SETTINGS).run())


OUTSIDE = ("halved_warmup_divisor", "nominal_batch_means", "sequential_statistics")
"""Quirks of the warm-up and of the evaluation, which the search knows nothing of; see tests/pipeline/test_quirks.py."""


@pytest.mark.parametrize("quirk", [quirk for quirk in QUIRKS if quirk not in OUTSIDE])
def test_every_quirk_of_the_search_alone_reaches_the_budget_and_continues_from_its_records(
    quirk: str, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    settings = EkgSettings(step=0.4, quirks=frozenset({quirk}))  # type: ignore[arg-type]
    budget = budget_of(graph, 0.35)
    made = list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget, settings).run())
    assert budget.is_met(made[-1].macs, made[-1].params)
    before = decisions_from_records(records(made[:3]), graph.full())
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0], [1, 2]]), budget, settings)
    assert records(before + list(search.run(before))) == records(made)
