"""Evaluations on the batches of a small search: whoever owns them and however they are run, the decisions stay."""

import dataclasses
import gc
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from local_evaluator import SETTINGS, LocalEvaluator, batch_evaluator, budget_of, evaluator_of, records
from torch import nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.sliced import Walk
from ekgsearch.errors import NumericsError
from ekgsearch.maths.knowledge import cross_entropy_terms
from ekgsearch.methods.base import (
    BatchResult,
    Candidate,
    Decision,
    Evaluation,
    mean_over_batches,
    sum_over_batches,
)
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.methods.evaluate import PREFIX_BYTES, BatchEvaluator, SearchBatch
from ekgsearch.methods.networks import TIE_TOLERANCE, FastNetworks, NaiveNetworks
from ekgsearch.records import Subnetwork


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


@pytest.mark.parametrize("prefix_bytes", [0, 400_000])
def test_walking_again_changes_no_bit(
    prefix_bytes: int, graph: ChannelGraph, batches: list[SearchBatch], made: list[Decision]
) -> None:
    walks: list[bool] = []

    class Noting(FastNetworks):
        """Notes whether candidates start from what scoring computed."""

        def candidates(self, *arguments: Any) -> Callable[..., list[torch.Tensor]]:
            run = super().candidates(*arguments)

            def noting(images: torch.Tensor, walk: Walk | None) -> list[torch.Tensor]:
                walks.append(walk is not None)
                return run(images, walk)

            return noting

    def run(free: int) -> list[Decision]:
        evaluator = BatchEvaluator(Noting(graph), lambda images: images, batches, 41, prefix_bytes=free)
        return list(EkgSearch(graph, LocalEvaluator([evaluator]), budget_of(graph), SETTINGS).run())

    assert records(run(prefix_bytes)) == records(made)
    assert any(walks) == (prefix_bytes > 0)
    assert not all(walks), "the memory holds some batches at most"
    walks.clear()
    assert records(run(PREFIX_BYTES)) == records(made)
    assert all(walks)


def test_a_walk_that_is_not_kept_is_gone_before_the_next_batch(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    alive: list[int] = []

    class Counting(FastNetworks):
        """Counts the walks that are in memory whenever a batch is scored."""

        def scores(self, *arguments: Any) -> Any:
            alive.append(sum(type(one) is Walk for one in gc.get_objects()))
            return super().scores(*arguments)

    for prefix_bytes, expected in ((0, [0, 0, 0]), (PREFIX_BYTES, [0, 1, 2])):
        alive.clear()
        evaluator = BatchEvaluator(Counting(graph), lambda images: images, batches, 41, prefix_bytes=prefix_bytes)
        evaluator.begin([graph.full()])
        evaluator.scores(graph.full(), 1)
        assert alive == expected
        del evaluator


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


def test_a_worker_that_missed_an_iteration_says_so(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    evaluator = batch_evaluator(FastNetworks(graph), batches)
    evaluator.begin([graph.full()])
    again = evaluator.scores(graph.full(), 1)
    assert all(np.array_equal(again[0][name], found) for name, found in evaluator.scores(graph.full(), 1)[0].items())
    with pytest.raises(NumericsError, match="missed an iteration"):
        evaluator.scores(graph.full(), 3)


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


def test_nominal_means_divide_every_batch_by_the_nominal_size() -> None:
    results = {0: BatchResult(16, 4, 8.0, 12.0), 1: BatchResult(4, 1, 3.0, 5.0)}
    assert mean_over_batches(results).loss == pytest.approx(11 / 20)
    assert mean_over_batches(results, nominal_batch=16).loss == pytest.approx((8 / 16 + 3 / 16) / 2)
    assert mean_over_batches(results, nominal_batch=16).score == pytest.approx((12 / 16 + 5 / 16) / 2)


def test_batches_are_added_in_their_order_however_they_arrive_and_stay_as_they_are() -> None:
    values = {2: -1e16, 1: 1e16, 0: 1.0}
    assert mean_over_batches({batch: BatchResult(1, 0, one, one) for batch, one in values.items()}).score == 0.0
    scores = {batch: {"g": np.array([one])} for batch, one in values.items()}
    assert sum_over_batches(scores)["g"] == [0.0]
    assert {batch: found["g"].item() for batch, found in scores.items()} == values


@pytest.mark.parametrize(("loss", "score"), [(math.inf, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_an_evaluation_is_finite_where_both_means_are(loss: float, score: float) -> None:
    assert not Evaluation(loss, score, 0, 1).is_finite
    assert Evaluation(1.0, 1.0, 0, 1).is_finite


def cuts(subnetwork: Subnetwork) -> list[Candidate]:
    """A candidate for some channel groups, without the last eight channels."""
    names = subnetwork.names[::3]
    return [Candidate(name, subnetwork.replace(name, subnetwork[name][:-8]), Fraction(1, 2)) for name in names]


def test_candidates_start_from_no_walk_through_another_network(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    """Neither where another network was scored last, nor where the memory holds no walk through that one."""
    full = graph.full()
    narrow = full
    for name in full.names:
        narrow = narrow.replace(name, full[name][: len(full[name]) // 2])
    networks = FastNetworks(graph)
    _, walk = networks.scores(batches[0].pixels, lambda logits: logits.sum(), networks.prepare(narrow))
    assert walk is not None
    evaluator = BatchEvaluator(networks, lambda images: images, batches, 41, prefix_bytes=walk.num_bytes)
    fresh = BatchEvaluator(networks, lambda images: images, batches, 41, prefix_bytes=0)
    for one in (evaluator, fresh):
        one.begin([narrow])
        one.scores(narrow, 1)
    assert evaluator.evaluate(full, cuts(full)) == fresh.evaluate(full, cuts(full))
    for one in (evaluator, fresh):
        one.scores(full, 2)
    assert evaluator.evaluate(full, cuts(full)) == fresh.evaluate(full, cuts(full))


def test_some_of_the_batches_give_the_results_that_they_have_among_all(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    full, evaluator = graph.full(), batch_evaluator(FastNetworks(graph), batches)
    evaluator.begin([full])
    whole = evaluator.evaluate(full, cuts(full))
    assert evaluator.evaluate(full, cuts(full), [2, 0]) == {batch: whole[batch] for batch in (0, 2)}


def test_further_networks_extend_the_ensemble_knowledge(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    full = graph.full()
    networks = [full, *(candidate.subnetwork for candidate in cuts(full)[:2])]
    whole, parts = (batch_evaluator(FastNetworks(graph), batches) for _ in range(2))
    expected = whole.begin(networks)
    parts.begin(networks[:1])
    parts.extend(networks[1:2])
    assert parts.extend(networks[2:]) == expected
    assert parts.num_averaged == whole.num_averaged == 3
    for batch in batches:
        assert torch.equal(parts.knowledge(batch.index), whole.knowledge(batch.index))


def test_near_ties_are_settled_by_the_bits_of_the_masked_network(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    class OnlyMasked(FastNetworks):
        """Has the masked network, and nothing faster."""

        def forward(self, images: torch.Tensor, subnetwork: Subnetwork) -> torch.Tensor:
            raise AssertionError("near ties are settled by the masked network")

    full = graph.full()
    fast, naive = (batch_evaluator(networks(graph), batches) for networks in (OnlyMasked, NaiveNetworks))
    for one in (fast, naive):
        one.set_knowledge({batch.index: torch.zeros(len(batch.labels), 4) for batch in batches}, 1)
    assert fast.settle(cuts(full)) == naive.evaluate(full, cuts(full))
