"""Races of candidates whose scores on every batch are given as a table."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import pytest

from ekgsearch.methods.base import (
    BatchResult,
    Candidate,
    Evaluation,
    GroupScores,
    eligible,
    mean_over_batches,
)
from ekgsearch.methods.ekg.racing import Racing
from ekgsearch.records import Subnetwork

FULL = Subnetwork.of({"group": range(100)})


class Table:
    """Answers from a table of score sums (candidates, batches); notes every question."""

    def __init__(self, sums: Sequence[Sequence[float]], images: Sequence[int]) -> None:
        self.sums, self.images = sums, images
        self.asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        return Evaluation(float(len(interim)), 0.0, 0, sum(self.images))

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        return {"group": np.array([float(count)])}

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return [Evaluation(0.0, float(candidate.num_kept), 0, 0) for candidate in candidates]

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        raise AssertionError("a race asks for some of the batches")

    def evaluate_on(
        self, current: Subnetwork, candidates: Sequence[Candidate], batches: Sequence[int]
    ) -> Mapping[int, Sequence[BatchResult]]:
        which = tuple(int(candidate.rate) for candidate in candidates)
        self.asked.append((which, tuple(batches)))
        return {
            batch: [
                BatchResult(self.images[batch], 1, self.sums[one][batch] / 2, self.sums[one][batch]) for one in which
            ]
            for batch in batches
        }

    def exact(self, one: int) -> Evaluation:
        whole = self.evaluate_on(FULL, [candidate(one)], range(len(self.images)))
        return mean_over_batches({batch: results[0] for batch, results in whole.items()})


def candidate(index: int) -> Candidate:
    """A candidate that carries its row of the table."""
    return Candidate("group", FULL.replace("group", range(99)), Fraction(index))


def race(table: Table, error: float = 0.05) -> tuple[Racing, list[Evaluation]]:
    racing = Racing(table, range(len(table.images)), error)
    return racing, racing.evaluate(FULL, [candidate(index) for index in range(len(table.sums))])


def wobbling(level: float, num_batches: int, seed: int) -> list[float]:
    return (level + 0.01 * np.random.default_rng(seed).normal(size=num_batches)).tolist()


def test_clear_losers_go_early_and_the_winner_sees_everything_in_few_questions() -> None:
    table = Table([wobbling(level, 32, seed) for seed, level in enumerate((3.0, 1.0, 2.0, 1.002))], [8] * 32)
    racing, found = race(table)
    assert [evaluation.images for evaluation in found] == [8 * 4, 8 * 32, 8 * 4, found[3].images]
    assert found[3].images > 8 * 4
    assert found[1] == table.exact(1)
    assert found[0].score == pytest.approx(np.mean(table.sums[0][:4]) / 8)
    assert eligible(found) in ([1], [1, 3])
    assert racing.num_evaluated == sum(evaluation.images for evaluation in found) / 8
    assert racing.num_possible == 4 * 32
    assert racing.share_evaluated == racing.num_evaluated / 128


def test_one_candidate_left_sees_the_rest_in_one_question() -> None:
    table = Table([wobbling(level, 32, seed) for seed, level in enumerate((3.0, 1.0, 2.0))], [8] * 32)
    race(table)
    assert table.asked == [((0, 1, 2), tuple(range(4))), ((1,), tuple(range(4, 32)))]


def test_no_batch_is_evaluated_twice_and_candidates_that_tie_see_all() -> None:
    row = wobbling(1.0, 20, 0)
    table = Table([row, row, wobbling(5.0, 20, 1)], [4] * 20)
    _, found = race(table)
    asked = [batch for which, batches in table.asked for batch in batches]
    assert asked == list(range(20))
    assert eligible(found) == [0, 1]
    assert found[0] == found[1] == table.exact(0)


@pytest.mark.parametrize("num_batches", [1, 2, 4])
def test_few_batches_are_all_seen_and_that_is_said_once(num_batches: int, caplog: pytest.LogCaptureFixture) -> None:
    table = Table([[1.0] * num_batches, [1000.0] * num_batches], [8] * num_batches)
    racing, found = race(table, error=0.5)
    racing.evaluate(FULL, [candidate(0), candidate(1)])
    assert [evaluation.images for evaluation in found] == [8 * num_batches] * 2
    assert found == [table.exact(0), table.exact(1)]
    assert racing.share_evaluated == 1
    assert caplog.text.count("search.racing needs more than 4 batches") == 1


def test_a_candidate_that_is_not_finite_goes_at_once() -> None:
    table = Table([[math.nan] * 16, wobbling(1.0, 16, 0), wobbling(1.0, 16, 1)], [8] * 16)
    _, found = race(table)
    assert found[0].images == 8 * 4
    assert eligible(found) == [1, 2]


@pytest.mark.parametrize("breaks_at", [5, 15])
def test_where_the_leader_breaks_down_those_that_it_beat_come_back(breaks_at: int) -> None:
    leader = wobbling(1.0, 16, 0)
    leader[breaks_at] = math.inf
    table = Table([wobbling(5.0, 16, 1), leader, wobbling(3.0, 16, 2)], [8] * 16)
    _, found = race(table)
    assert not found[1].is_finite
    assert eligible(found) == [0, 2]
    assert [found[0], found[2]] == [table.exact(0), table.exact(2)]


def test_nothing_finite_leaves_nothing_to_choose() -> None:
    _, found = race(Table([[math.nan] * 8, [math.inf] * 8], [8] * 8))
    assert eligible(found) == []


def test_nominal_means_weigh_all_batches_alike() -> None:
    table = Table([wobbling(1.0, 8, 0), wobbling(9.0, 8, 1)], [8] * 7 + [1])
    racing = Racing(table, range(8), 0.05, nominal_batch=8)
    found = racing.evaluate(FULL, [candidate(0), candidate(1)])
    assert found[0].score == pytest.approx(sum(table.sums[0]) / 64)
    assert found[1].images == 8 * 4


def test_nominal_sizes_weigh_the_batches_also_where_candidates_are_dropped() -> None:
    """Differences that are as large as batches have images: without spread by true sizes, with it by nominal ones."""
    images = [1] + [8] * 15
    table = Table([[0.0] * 16, [float(size) for size in images]], images)
    found = [
        Racing(table, range(16), 0.005, nominal_batch=size).evaluate(FULL, [candidate(0), candidate(1)])[1].images
        for size in (None, 8)
    ]
    assert found == [sum(images[:4]), sum(images[:8])]


def test_the_error_probability_is_shared_among_those_that_started(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int, int]] = []
    monkeypatch.setattr("ekgsearch.methods.ekg.racing.error_of_one_test", lambda *given: asked.append(given) or 0.01)
    race(Table([wobbling(level, 32, seed) for seed, level in enumerate((3.0, 1.0, 2.0, 1.002))], [8] * 32))
    assert len(asked) > 1
    assert set(asked) == {(0.05, 4, 3)}


def test_what_is_not_raced_is_passed_on() -> None:
    racing, _ = race(Table([[1.0]], [8]))
    assert racing.begin([FULL, FULL]).loss == 2
    assert racing.scores(FULL, 3)["group"] == [3.0]
    assert racing.settle([candidate(0)])[0].score == 99
