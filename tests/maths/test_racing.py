"""Races on scores drawn at random: the best is lost more rarely than stated, and clear cases end early."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import stdtr

from ekgsearch.maths.racing import LEAST_BATCHES, error_of_one_test, looks, still_in

ERROR = 0.05
IMAGES = 32

Noise = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]
NOISES: dict[str, Noise] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "skewed": lambda generator, shape: generator.lognormal(0, 1, shape),
    "heavy tails": lambda generator, shape: generator.standard_t(3, shape),
}


def race(sums: NDArray[np.float64], weights: NDArray[np.float64], error: float) -> tuple[list[int], int]:
    """Candidates left at the end, and how many evaluations of a candidate on a batch that took."""
    running, seen, evaluations = np.arange(len(sums)), 0, 0
    stops = looks(len(weights))
    for stop in [*stops, len(weights)]:
        evaluations += len(running) * (stop - seen)
        seen = stop
        if stop < len(weights) and len(running) > 1:
            one = error_of_one_test(error, len(sums), len(stops))
            running = running[still_in(sums[running, :stop], weights[:stop], len(weights), one)]
    return running.tolist(), evaluations


def draw(
    generator: np.random.Generator, noise: Noise, num_batches: int, spread: float, num_candidates: int = 12
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of scores of candidates that share how hard each batch is; the last batch is smaller."""
    weights = np.full(num_batches, float(IMAGES))
    weights[-1] = generator.integers(1, IMAGES)
    hardness = generator.lognormal(0, 1, num_batches)
    offsets = spread * generator.exponential(1, num_candidates)
    means = hardness + offsets[:, None] + 0.1 * noise(generator, (num_candidates, num_batches))
    return means * weights, weights


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("error", [ERROR, 0.4])
def test_the_best_candidate_is_lost_more_rarely_than_stated(noise: str, error: float) -> None:
    generator = np.random.default_rng(0)
    num_races = lost = 0
    for num_batches in (6, 16, 125):
        for spread in (0.0, 0.03, 0.1):  # 0: all equal but for noise, which is hardest
            for _ in range(150):
                sums, weights = draw(generator, NOISES[noise], num_batches, spread)
                best = int(sums.sum(axis=1).argmin())
                lost += best not in race(sums, weights, error)[0]
                num_races += 1
    assert lost / num_races + 2 * math.sqrt(error / num_races) <= error


def test_a_race_with_two_candidates_spends_its_error_probability_but_no_more() -> None:
    """One comparison at one look: the bound is then nearly tight, which shows that it is not vacuous."""
    generator = np.random.default_rng(1)
    num_races, lost = 3000, 0
    for _ in range(num_races):
        sums, weights = draw(generator, NOISES["normal"], 40, 0.0, num_candidates=2)
        kept = still_in(sums[:, :20], weights[:20], 40, 0.2)
        lost += not kept[int(sums.sum(axis=1).argmin())]
    assert 0.02 <= lost / num_races <= 0.2


def test_a_clear_race_saves_most_evaluations_and_keeps_the_winner() -> None:
    generator = np.random.default_rng(2)
    for num_batches, most in ((16, 0.35), (125, 0.25)):
        sums, weights = draw(generator, NOISES["normal"], num_batches, spread=0.0)
        sums[1:] += 2.0 * weights  # twenty times the noise
        running, evaluations = race(sums, weights, ERROR)
        assert running == [0]
        assert evaluations <= most * sums.size


def test_what_all_find_hard_in_a_batch_does_not_matter() -> None:
    """Paired differences: an offset of a batch for all candidates changes nothing, however large."""
    generator = np.random.default_rng(3)
    sums, weights = draw(generator, NOISES["normal"], 20, 0.2)
    offsets = 100 * generator.normal(size=20)
    kept = still_in(sums, weights, 40, 0.01)
    assert not kept.all()
    assert kept.tolist() == still_in(sums + offsets * weights, weights, 40, 0.01).tolist()


def test_batches_count_by_their_images() -> None:
    """Two halves of a batch weigh as much as the whole; the mean, and so the leader, is that over the images."""
    sums = np.array([[40.0, 40.0, 40.0, 4.0], [36.0, 36.0, 36.0, 9.0]])
    weights = np.array([10.0, 10.0, 10.0, 1.0])
    assert sums.mean(axis=1).argmin() == (sums.sum(axis=1) / weights.sum()).argmin() == 1
    assert (sums / weights).mean(axis=1).argmin() == 0
    assert still_in(sums, weights, 100, 1e-9)[1]


def test_bound_by_hand_with_equal_batches() -> None:
    """Four differences 1, 2, 3, 4 of ten batches: mean 2.5, sd sqrt(5/3 / 4 * 0.6) = 0.5."""
    sums = np.array([[0.0, 0, 0, 0], [1, 2, 3, 4]])
    threshold = 0.0076926  # one-sided p-value of 2.5 / 0.5 = 5 with 3 degrees of freedom
    assert still_in(sums, np.ones(4), 10, threshold * 0.999).tolist() == [True, True]
    assert still_in(sums, np.ones(4), 10, threshold * 1.001).tolist() == [True, False]


def test_bound_by_hand_with_batches_of_different_sizes() -> None:
    """Differences 3, 5, 12 of 1, 2, 3 images: 10/3 per image, residuals -1/3, -5/3, 2, sd^2 0.7 / 12 * 31/9."""
    sums, weights = np.array([[0.0, 0, 0], [3, 5, 12]]), np.array([1.0, 2, 3])
    threshold = float(stdtr(2, -(10 / 3) / math.sqrt(0.7 / 12 * 31 / 9)))  # one-sided p-value
    assert still_in(sums, weights, 10, threshold * 0.999).tolist() == [True, True]
    assert still_in(sums, weights, 10, threshold * 1.001).tolist() == [True, False]


def test_the_error_probability_is_shared_by_the_rivals_of_the_leader_at_every_look() -> None:
    assert error_of_one_test(0.06, num_candidates=4, num_looks=2) == pytest.approx(0.01)
    assert error_of_one_test(0.06, num_candidates=2, num_looks=1) == 0.06


def test_equal_candidates_stay_and_the_leader_is_always_in() -> None:
    sums = np.array([[3.0, 3, 3, 3], [2, 2, 2, 2], [2, 2, 2, 2]])
    assert still_in(sums, np.ones(4), 8, 0.01).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("num_batches", "expected"),
    [(1, ()), (2, ()), (4, ()), (5, (4,)), (10, (4, 5)), (32, (4, 8, 16)), (125, (16, 32, 63))],
)
def test_looks_are_an_eighth_a_quarter_and_a_half_but_at_least_four(num_batches: int, expected: tuple) -> None:
    assert looks(num_batches) == expected
    assert all(LEAST_BATCHES <= look < num_batches for look in looks(num_batches))
