"""The shortlist threshold against a brute-force search (invariant E12)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ekgsearch.maths.otsu import trimmed_otsu

values = st.lists(st.floats(0, 1e3, allow_nan=False, width=32), min_size=1, max_size=40)


def brute_force(numbers: list[float], trim: float = 0.2) -> float | None:
    ordered = sorted(numbers)
    cut = math.ceil(trim * len(ordered))
    middle = ordered[cut : len(ordered) - cut]
    if len(middle) < 3:
        return None
    variances = []
    for split in range(1, len(middle) - 1):
        low, high = np.array(middle[:split]), np.array(middle[split:])
        variances.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2)
    best = int(np.argmax(variances)) + 1
    return (middle[best - 1] + middle[best]) / 2


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_threshold_equals_a_brute_force_search_over_midpoints(numbers: list[int]) -> None:
    found, expected = trimmed_otsu(numbers), brute_force([float(number) for number in numbers])
    if expected is None:
        assert found is None
        return
    assert found is not None

    def variance(threshold: float) -> float:
        ordered = sorted(numbers)
        cut = math.ceil(0.2 * len(ordered))
        middle = np.array(ordered[cut : len(ordered) - cut], dtype=float)
        low, high = middle[middle <= threshold], middle[middle > threshold]
        return 0.0 if not len(low) or not len(high) else len(low) * len(high) * (low.mean() - high.mean()) ** 2

    assert found == expected or variance(found) == pytest.approx(variance(expected), rel=1e-9)


@given(values, st.randoms())
def test_threshold_does_not_depend_on_the_order_of_the_values(numbers: list[float], random: object) -> None:
    shuffled = list(numbers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert trimmed_otsu(numbers) == trimmed_otsu(shuffled)


@given(values, st.sampled_from([0.25, 2.0, 1024.0]))
def test_threshold_scales_with_the_values(numbers: list[float], factor: float) -> None:
    threshold, scaled = trimmed_otsu(numbers), trimmed_otsu([factor * number for number in numbers])
    assert scaled == (None if threshold is None else threshold * factor)


def test_two_clear_clusters_are_split_between_them() -> None:
    assert trimmed_otsu([0.0, 1, 1.1, 1.2, 5, 5.1, 5.2, 9, 9, 0]) == pytest.approx((1.2 + 5) / 2)


def test_of_two_equal_variances_the_lower_split_wins() -> None:
    assert trimmed_otsu([-3.0, -1.0, 0.0, 1.0, 3.0], trim=0.0) == -0.5


def test_fewer_than_three_values_after_trimming_have_no_threshold() -> None:
    assert trimmed_otsu([1.0, 2.0, 3.0, 4.0]) is None
    assert trimmed_otsu([]) is None


def test_thirty_channel_groups_give_a_shortlist_of_seven_to_twenty_two() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        numbers = generator.gamma(0.5, size=30).tolist()
        threshold = trimmed_otsu(numbers)
        assert threshold is not None
        assert 7 <= sum(number <= threshold for number in numbers) <= 22
