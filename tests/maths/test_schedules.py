"""The learning rate over the epochs."""

import pytest

from ekgsearch.maths.schedules import step_decay


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 1e-2), (29.99, 1e-2), (30.0, 2e-3), (59.5, 2e-3), (60.0, 4e-4), (80.0, 8e-5), (99.9, 8e-5)],
)
def test_the_rate_drops_after_the_end_of_each_milestone(progress: float, expected: float) -> None:
    assert step_decay(progress, base=1e-2, milestones=(30, 60, 80), decay=0.2) == pytest.approx(expected)


def test_without_milestones_the_rate_is_constant() -> None:
    assert {step_decay(progress, base=0.1) for progress in (0.0, 0.5, 7.0, 1000.0)} == {0.1}
