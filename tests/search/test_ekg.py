"""The search on a small network: the published rules, and what must hold in every iteration."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.errors import BudgetError, NumericsError
from ekgsearch.maths.knowledge import cross_entropy_terms
from ekgsearch.maths.otsu import trimmed_otsu
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.zoo import build
from ekgsearch.records import Subnetwork
from ekgsearch.search.base import (
    BatchResult,
    Candidate,
    Decision,
    Evaluation,
    GroupScores,
    decisions_from_records,
    mean_over_batches,
    sum_over_batches,
)
from ekgsearch.search.budget import Budget, set_budget
from ekgsearch.search.ekg import TIE_TOLERANCE, EkgSearch, EkgSettings
from ekgsearch.search.evaluate import BatchEvaluator, SearchBatch, evaluations
from ekgsearch.search.networks import FastNetworks, NaiveNetworks, Networks
from ekgsearch.search.steps import QUIRKS, StepRule, coarse_step

SETTINGS = EkgSettings(step=0.4)


class LocalEvaluator:
    """Two evaluators that own different batches, as two workers would; counts what it is asked."""

    def __init__(self, parts: Sequence[BatchEvaluator]) -> None:
        self.parts = parts
        self.num_candidates = 0

    def begin(self, history: Sequence[Subnetwork]) -> Evaluation:
        return mean_over_batches(merge(part.begin(history) for part in self.parts))

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        return sum_over_batches(merge(part.scores(current, count) for part in self.parts))

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        self.num_candidates += len(candidates)
        return evaluations(merge(part.evaluate(current, candidates) for part in self.parts), len(candidates))

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return evaluations(merge(part.settle(candidates) for part in self.parts), len(candidates))


def merge(answers: object) -> dict:
    return {batch: value for answer in answers for batch, value in answer.items()}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.set_num_threads(1)
    network = build(NetSpec("resnet20", 4, (3, 8, 8)), seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> ChannelGraph:
    return analyse(network, (3, 8, 8))


@pytest.fixture(scope="module")
def batches() -> list[SearchBatch]:
    generator = torch.Generator().manual_seed(2)
    sizes = [16, 16, 9]
    return [
        SearchBatch(
            index,
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for index, size in enumerate(sizes)
    ]


def batch_evaluator(networks: Networks, batches: Sequence[SearchBatch]) -> BatchEvaluator:
    return BatchEvaluator(networks, lambda images: images, batches, 41)


def evaluator_of(
    graph: ChannelGraph,
    batches: list[SearchBatch],
    split: Sequence[Sequence[int]],
    networks: Callable[[ChannelGraph], Networks] = FastNetworks,
) -> LocalEvaluator:
    return LocalEvaluator([batch_evaluator(networks(graph), [batches[index] for index in part]) for part in split])


def budget_of(graph: ChannelGraph, reduction: float = 0.5, unit: str = "macs") -> Budget:
    return set_budget(graph, reduction=reduction, absolute=None, unit=unit, counter="macs")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(graph: ChannelGraph, batches: list[SearchBatch]) -> list[Decision]:
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), SETTINGS)
    return list(search.run())


def records(decisions: Sequence[Decision]) -> list[dict]:
    return [decision.to_record() for decision in decisions]


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


def test_every_candidate_is_one_step_of_the_published_size(graph: ChannelGraph, made: list[Decision]) -> None:
    rates = {group.name: Fraction(1) for group in graph.groups}
    for decision in made[1:-1]:
        for outcome in decision.candidates:
            group = graph.group(outcome.group)
            rate = rates[outcome.group] - coarse_step(group.size, group.uses, SETTINGS.step)
            assert outcome.num_kept == StepRule().num_kept(group.size, rate)
        rates[decision.group] = decision.rate


def test_ensemble_knowledge_is_the_mean_of_all_logits_so_far(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    masked = MaskedNetwork(graph)
    evaluator = batch_evaluator(FastNetworks(graph), batches)
    list(EkgSearch(graph, LocalEvaluator([evaluator]), budget_of(graph), SETTINGS).run())
    assert evaluator.num_averaged == len(made) - 1, "the last network ends the search and is not averaged in"
    for batch in batches:
        logits = [masked.forward(batch.pixels, decision.subnetwork, norm_mode="batch") for decision in made[:-1]]
        expected = torch.stack(logits).double().mean(0)
        torch.testing.assert_close(evaluator.knowledge(batch.index), expected, rtol=0, atol=1e-5)


def test_decisions_do_not_depend_on_who_owns_the_batches(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    for split in ([[2, 0], [1]], [[1], [2], [0]]):
        search = EkgSearch(graph, evaluator_of(graph, batches, split), budget_of(graph), SETTINGS)
        assert records(list(search.run())) == records(made)


def without_numbers(decisions: Sequence[Decision]) -> list[dict]:
    """Records of decisions without what was measured, which rounding may change."""
    found = []
    for record in records(decisions):
        candidates = [
            {key: line[key] for key in ("group", "num_kept", "macs", "params")} for line in record["candidates"]
        ]
        kept = {key: value for key, value in record.items() if key not in ("loss", "score", "threshold", "correct")}
        found.append({**kept, "candidates": candidates})
    return found


def test_sharing_what_comes_before_gives_the_bits_of_running_every_candidate_from_the_images(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    naive = evaluator_of(graph, batches, [[0, 1, 2]], NaiveNetworks)
    shared = evaluator_of(graph, batches, [[0, 1, 2]], partial(FastNetworks, slice_below=0.0))
    expected = records(list(EkgSearch(graph, naive, budget_of(graph), SETTINGS).run()))
    assert records(list(EkgSearch(graph, shared, budget_of(graph), SETTINGS).run())) == expected


@pytest.mark.parametrize("slice_below", [0.5, 0.9, 1.0])
def test_slicing_makes_the_decisions_of_the_masked_network(
    slice_below: float, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    naive = evaluator_of(graph, batches, [[0, 1, 2]], NaiveNetworks)
    expected = list(EkgSearch(graph, naive, budget_of(graph), SETTINGS).run())
    sliced = evaluator_of(graph, batches, [[0], [1, 2]], partial(FastNetworks, slice_below=slice_below))
    settings = dataclasses.replace(SETTINGS, tie_tolerance=TIE_TOLERANCE)
    found = list(EkgSearch(graph, sliced, budget_of(graph), settings).run())
    assert without_numbers(found) == without_numbers(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.evaluation.score == pytest.approx(other.evaluation.score, rel=1e-5)


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


def test_a_worker_that_missed_an_iteration_says_so(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    evaluator = batch_evaluator(FastNetworks(graph), batches)
    evaluator.begin([graph.full()])
    again = evaluator.scores(graph.full(), 1)
    assert all(np.array_equal(again[0][name], found) for name, found in evaluator.scores(graph.full(), 1)[0].items())
    with pytest.raises(NumericsError, match="missed an iteration"):
        evaluator.scores(graph.full(), 3)


def test_a_search_continues_from_its_records_in_any_iteration(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    for stop in range(1, len(made)):
        history = decisions_from_records(records(made[:stop]), graph.full())
        search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), SETTINGS)
        assert records(history + list(search.run(history))) == records(made)


def test_candidates_may_be_evaluated_in_any_order(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    names = [group.name for group in graph.groups]
    full = graph.full()
    candidates = [Candidate(name, full.replace(name, full[name][:-2]), Fraction(1, 2)) for name in names]
    evaluator = evaluator_of(graph, batches, [[0, 1, 2]])
    evaluator.begin([full])
    forwards = evaluator.evaluate(full, candidates)
    backwards = evaluator.evaluate(full, candidates[::-1])
    assert forwards == backwards[::-1]


def test_weights_and_running_statistics_are_not_touched(
    network: nn.Module, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph, 0.2), SETTINGS).run())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_first_shortlist_follows_from_scores_computed_by_hand(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    """Central differences of the score on every channel of every single-site group give the same shortlist sums."""
    evaluator = batch_evaluator(NaiveNetworks(graph), batches)
    evaluator.begin([graph.full()])
    scores = sum_over_batches(evaluator.scores(graph.full(), 1))
    doomed = []
    for group in graph.groups:
        kept = StepRule().num_kept(group.size, 1 - coarse_step(group.size, group.uses, SETTINGS.step))
        doomed.append(float(np.sort(scores[group.name])[: group.size - kept].sum()))
    threshold = trimmed_otsu(doomed)
    assert threshold is not None
    assert made[1].threshold == pytest.approx(threshold, rel=1e-12)
    expected = [group.name for group, value in zip(graph.groups, doomed, strict=True) if value <= threshold]
    assert [outcome.group for outcome in made[1].candidates] == expected


def test_loss_and_score_are_true_means_over_the_images(
    graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    masked = MaskedNetwork(graph)
    label_terms, ensemble_terms = [], []
    for batch in batches:
        first = masked.forward(batch.pixels, graph.full(), norm_mode="batch").double()
        logits = masked.forward(batch.pixels, made[1].subnetwork, norm_mode="batch").double()
        to_label, to_ensemble = cross_entropy_terms(logits, batch.labels, first)
        label_terms.append(to_label)
        ensemble_terms.append(to_ensemble)
    loss = torch.cat(label_terms).mean().item()
    assert made[1].evaluation.loss == pytest.approx(loss, rel=1e-6)
    assert made[1].evaluation.score == pytest.approx(loss + torch.cat(ensemble_terms).mean().item(), rel=1e-6)


@pytest.mark.parametrize(("unit", "reduction"), [("params", 0.6), ("macs", 0.93)])
def test_other_budgets_are_met_as_well(
    graph: ChannelGraph, batches: list[SearchBatch], unit: str, reduction: float
) -> None:
    budget = budget_of(graph, reduction, unit)
    last = list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget, SETTINGS).run())[-1]
    assert budget.is_met(last.macs, last.params)


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


@pytest.mark.parametrize("quirk", QUIRKS)
def test_every_quirk_alone_reaches_the_budget_and_continues_from_its_records(
    quirk: str, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    settings = EkgSettings(step=0.4, quirks=frozenset({quirk}))  # type: ignore[arg-type]
    budget = budget_of(graph, 0.35)
    made = list(EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget, settings).run())
    assert budget.is_met(made[-1].macs, made[-1].params)
    history = decisions_from_records(records(made[:3]), graph.full())
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0], [1, 2]]), budget, settings)
    assert records(history + list(search.run(history))) == records(made)


def test_nominal_means_divide_every_batch_by_the_nominal_size() -> None:
    results = {0: BatchResult(16, 4, 8.0, 12.0), 1: BatchResult(4, 1, 3.0, 5.0)}
    assert mean_over_batches(results).loss == pytest.approx(11 / 20)
    assert mean_over_batches(results, nominal_batch=16).loss == pytest.approx((8 / 16 + 3 / 16) / 2)
    assert mean_over_batches(results, nominal_batch=16).score == pytest.approx((12 / 16 + 5 / 16) / 2)
