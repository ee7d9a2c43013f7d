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
    ("value", "like", "text"),
    [
        (950_000, 1_005_000, "0.950 M"),
        (5_100_652, 10_202_652, "5.10 M"),
        (1_005_000, 950_000, "1005.0 k"),
        (3, math.nan, "3"),
        (math.nan, 1e6, "–"),
    ],
)
def test_counts_next_to_each_other_have_one_prefix(value, like, text):
    assert numbers.count(value, like) == text


@pytest.mark.parametrize(
    ("longest", "name", "texts"),
    [
        (315.24, "hours", ["315.2", "0.0"]),
        (12.345, "hours", ["12.35", "0.00"]),
        (1.0, "hours", ["1.000", "0.004"]),
        (0.999, "minutes", ["59.94", "0.24"]),
        (1 / 60, "minutes", ["1.000", "0.240"]),
        (0.004, "seconds", ["14.40", "14.40"]),
        (0.0, "seconds", ["0.000", "14.400"]),
        (math.nan, "seconds", ["–", "14.400"]),
    ],
)
def test_all_times_of_a_page_have_the_unit_that_suits_the_longest(longest, name, texts):
    unit = numbers.TimeUnit.of(longest)
    assert unit.name == name
    assert [unit.number(longest), unit.number(0.004)] == texts


@pytest.mark.parametrize(
    ("value", "text"), [(0.412, "0.41 ms"), (3.92, "3.92 ms"), (11.62, "11.6 ms"), (250, "250 ms")]
)
def test_latency_has_three_digits(value, text):
    assert numbers.milliseconds(value) == text


def test_a_ratio_needs_a_measurement():
    assert numbers.times(1.5) == "1.50×"
    assert numbers.times(math.nan) == "–"
