"""A fast evaluation that is wrong is noticed on the first images, before anything is decided on it."""

from fractions import Fraction

import pytest
import torch
from local_evaluator import SETTINGS, batch_evaluator, budget_of, evaluator_of

from ekgsearch.channels.arithmetic import EXACT, Arithmetic
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.sliced import SlicedNetwork
from ekgsearch.errors import NetworkError
from ekgsearch.methods import first_batch
from ekgsearch.methods.base import Candidate, Decision
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.methods.evaluate import SearchBatch
from ekgsearch.methods.networks import FastNetworks


def test_scores_that_are_silently_zero_stop_the_search(
    graph: ChannelGraph, batches: list[SearchBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SlicedNetwork.scores

    def zeros(self, *args, **options):
        output, scores, walk = honest(self, *args, **options)
        return output, {name: torch.zeros_like(values) for name, values in scores.items()}, walk

    monkeypatch.setattr(SlicedNetwork, "scores", zeros)
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), SETTINGS)
    with pytest.raises(NetworkError, match=r"other scores of channels .* differ by 100.0% .* naive"):
        list(search.run())


def test_candidates_with_other_channels_stop_the_search(
    graph: ChannelGraph, batches: list[SearchBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SlicedNetwork.branches

    def shuffled(self, *args, **options):
        return [output.flip(1) for output in honest(self, *args, **options)]

    monkeypatch.setattr(SlicedNetwork, "branches", shuffled)
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), SETTINGS)
    with pytest.raises(NetworkError, match=r"other outputs of candidates .* most in channel group"):
        list(search.run())


@pytest.mark.parametrize("arithmetic", [EXACT, Arithmetic("bf16", channels_last=True)])
def test_rounding_is_far_from_what_is_noticed_and_the_check_is_made_once(
    graph: ChannelGraph,
    batches: list[SearchBatch],
    made: list[Decision],
    arithmetic: Arithmetic,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    monkeypatch.setattr(first_batch, "_compare", lambda *arguments: compared.append(arguments))
    evaluator = batch_evaluator(FastNetworks(graph, arithmetic=arithmetic), batches)
    full = graph.full()
    evaluator.begin([full])
    candidates = [
        Candidate(group.name, full.replace(group.name, range(group.size // 2)), Fraction(1, 2))
        for group in graph.groups[:3]
    ]
    for count in (1, 2):
        evaluator.scores(full, count)
        evaluator.evaluate(full, candidates)
    assert len(compared) == (2 if arithmetic == EXACT else 4)
    for _, found, expected, allowed in compared:
        one, other = (torch.cat([values[name].double().flatten() for name in expected]) for values in (found, expected))
        assert 3 * float((one - other).norm() / other.norm()) < allowed
