"""Quirks that act outside the loop of the search: on the warm-up and on how candidates are evaluated."""

from pathlib import Path

import pytest
import torch
from small_search import SmallSearch

from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.maths.knowledge import cross_entropy_terms
from ekgsearch.methods.base import Evaluation, GroupScores
from ekgsearch.pipeline.warmup import warmup_config
from ekgsearch.records import NormMode
from ekgsearch.workers.backend import InProcessBackend

IMAGES, BATCH, BATCHES = 120, 50, 3
"""Of the search subset; the last batch has 20 images."""


def measured(small: SmallSearch) -> tuple[Evaluation, GroupScores]:
    """Evaluation and importance of the unpruned network under the spec of the job."""
    spec, full = small.setup.search_spec, small.setup.graph.full()
    assert [len(ids) for _, ids in spec.batches] == [50, 50, 20]
    with InProcessBackend().team(small.workload, spec) as team:
        return team.begin([full]), team.scores(full, 1)


def with_quirks(folder: Path, *quirks: str) -> SmallSearch:
    folder.mkdir()
    return SmallSearch.make(folder, [f"search.batch_size={BATCH}", f"search.quirks=[{', '.join(quirks)}]"])


def test_nominal_batch_means_count_every_batch_as_a_whole_one(tmp_path: Path) -> None:
    plain, plain_scores = measured(with_quirks(tmp_path / "plain"))
    nominal, nominal_scores = measured(with_quirks(tmp_path / "nominal", "nominal_batch_means"))
    assert nominal.loss == pytest.approx(plain.loss * IMAGES / (BATCH * BATCHES), rel=1e-9)
    assert nominal.score == pytest.approx(plain.score * IMAGES / (BATCH * BATCHES), rel=1e-9)
    for name, values in plain_scores.items():
        assert nominal_scores[name] == pytest.approx(values * IMAGES / BATCH, rel=1e-3, abs=1e-6 * values.max())


def test_sequential_statistics_round_as_sums_over_one_element_after_the_other(tmp_path: Path) -> None:
    def loss(small: SmallSearch, mode: NormMode) -> float:
        setup, terms = small.setup, 0.0
        train, masked = setup.dataset.train, MaskedNetwork(setup.graph)
        for _, ids in setup.search_spec.batches:
            images = small.workload.normalisation(train.read(torch.tensor(ids)))
            logits = masked.forward(images, setup.graph.full(), norm_mode=mode).double()
            terms += float(cross_entropy_terms(logits, train.labels[list(ids)], logits)[0].sum())
        return terms / IMAGES

    plain, sequential = with_quirks(tmp_path / "plain"), with_quirks(tmp_path / "quirk", "sequential_statistics")
    found = [measured(small)[0].loss for small in (plain, sequential)]
    expected = [loss(plain, "batch"), loss(sequential, "batch_sequential")]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_halved_warmup_divisor_doubles_the_gradient_and_not_the_weight_decay(tmp_path: Path) -> None:
    plain, halved = (
        warmup_config(with_quirks(tmp_path / str(len(quirks)), *quirks).setup.job, 64)
        for quirks in ((), ("halved_warmup_divisor",))
    )
    assert halved.learning_rate == 2 * plain.learning_rate
    assert halved.learning_rate * halved.weight_decay == plain.learning_rate * plain.weight_decay
