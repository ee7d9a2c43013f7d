import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekgsearch.rows.run import DeviceHoursRow
from ekgsearch.sections.tune import Direction, Metric
from ekgsearch.sweep.hours import hours_of
from ekgsearch.sweep.results import front, varying

DIRECTIONS: dict[Metric, Direction] = {"accuracy": "max", "kept_macs": "min"}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_no_other_surpasses(points: list[tuple[int, int]]) -> None:
    found = front([{"accuracy": a, "kept_macs": m} for a, m in points], DIRECTIONS)
    gain = np.array([(a, -m) for a, m in points]).reshape(-1, 2)
    expected = {
        index
        for index, point in enumerate(gain)
        if not ((gain >= point).all(axis=1) & (gain > point).any(axis=1)).any()
    }
    assert found == expected


def test_a_trial_without_a_metric_is_not_on_the_front() -> None:
    assert front([{"accuracy": 90, "kept_macs": math.nan}, {"accuracy": 80, "kept_macs": 1}, {}], DIRECTIONS) == {1}


def test_fields_that_vary() -> None:
    found = varying([{"m": "a", "batch": 8, "r": 1}, {"m": "a", "batch": 8, "r": 2}, {"m": "b", "beta": 1}])
    assert found == ["m", "r"]


def _row(run: str, phase: str, hours: float, producer: str = "", instance: str = "") -> DeviceHoursRow:
    seconds = 3600 * hours
    return DeviceHoursRow(
        run=run,
        phase=phase,
        instance=instance or phase,
        attempt=1,
        device="cpu",
        num_devices=1,
        wall_seconds=seconds,
        busy_seconds=seconds,
        idle_seconds=0.0,
        device_hours=hours,
        exit_state="shared" if producer else "finished",
        producer=producer or run,
    )


def test_hours_are_charged_once_and_saved_by_the_others() -> None:
    rows = {
        "first": [_row("first", "pretrain", 1.0), _row("first", "search", 4.0), _row("first", "finetune", 2.0)],
        "second": [
            _row("second", "pretrain", 0.0, "first"),
            _row("second", "search", 0.0, "first"),
            _row("second", "search", 0.25),
            _row("second", "finetune", 2.0),
        ],
    }
    found = hours_of(rows, {"first": 41, "second": 20})
    assert found["first"].added == found["first"].alone == 7.0
    assert found["second"].added == 2.25
    assert found["second"].saved == pytest.approx(1.0 + 4.0 * 20 / 41)
    assert found["second"].alone == pytest.approx(3.25 + 4.0 * 20 / 41)
