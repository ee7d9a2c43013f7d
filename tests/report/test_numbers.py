"""Numbers as they stand in reports."""

import math

import pytest

from ekgsearch.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (125_747_840, "125.7 M"),
        (61_460_000, "61.46 M"),
        (855_770, "855.8 k"),
        (4_089_184_256, "4.089 G"),
        (999_950, "1.000 M"),
        (42, "42"),
        (0, "0"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_counts_have_four_digits_and_a_prefix(value, text):
    assert numbers.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.25, "+0.25"), (-0.5, "−0.50"), (-0.001, "0.00"), (math.nan, "–")])
def test_differences_carry_their_sign(value, text):
    assert numbers.signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(315.2, "315 h"), (12.34, "12.3 h"), (1.333, "1.33 h"), (0.25, "15.0 min"), (0.004, "14.4 s")]
)
def test_hours_fall_back_to_minutes_and_seconds(value, text):
    assert numbers.hours(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.412, "0.41 ms"), (3.92, "3.92 ms"), (11.62, "11.6 ms"), (250, "250 ms")]
)
def test_latency_has_three_digits(value, text):
    assert numbers.milliseconds(value) == text


def test_speed_up_needs_two_measurements():
    assert numbers.times(3.0, 2.0) == "1.50×"
    assert numbers.times(math.nan, 2.0) == numbers.times(3.0, math.nan) == numbers.times(3.0, 0.0) == "–"
