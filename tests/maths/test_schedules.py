"""The learning rate over the epochs."""

import pytest

from ekgsearch.maths.schedules import linear_rise, step_decay


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 1e-2), (29.99, 1e-2), (30.0, 2e-3), (59.5, 2e-3), (60.0, 4e-4), (80.0, 8e-5), (99.9, 8e-5)],
)
def test_the_rate_drops_after_the_end_of_each_milestone(progress: float, expected: float) -> None:
    assert step_decay(progress, base=1e-2, milestones=(30, 60, 80), decay=0.2) == pytest.approx(expected)


def test_without_milestones_the_rate_is_constant() -> None:
    assert {step_decay(progress, base=0.1) for progress in (0.0, 0.5, 7.0, 1000.0)} == {0.1}


def test_the_rate_rises_step_by_step_to_its_full_height() -> None:
    steps = [linear_rise((step + 1) / 4, epochs=2) for step in range(12)]
    assert steps == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1, 1, 1, 1]
    assert linear_rise(0.25, epochs=0) == 1
