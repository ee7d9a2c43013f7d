"""Kept numbers and step sizes (invariant E13)."""

from fractions import Fraction

import numpy as np
import pytest

from ekgsearch.methods.ekg.quirks import QUIRKS, default_padding, expand_reference
from ekgsearch.methods.ekg.reference import RoundedRates, two_decimal_rates
from ekgsearch.methods.ekg.steps import StepRule, coarse_step, importance_order


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (16, [13, 10, 7, 4, 1]),
        (32, [26, 20, 13, 7, 1]),
        (64, [52, 39, 26, 13, 1]),
        (128, [103, 77, 52, 26, 1]),
        (256, [205, 154, 103, 52, 1]),
        (512, [410, 308, 205, 103, 1]),
    ],
)
@pytest.mark.parametrize("rule", [StepRule(), RoundedRates()])
def test_kept_numbers_follow_the_published_vectors(rule: StepRule, size: int, expected: list[int]) -> None:
    rate, kept = Fraction(1), []
    for _ in range(5):
        rate = rule.narrowed(rate, Fraction(1, 5))
        kept.append(rule.num_kept(size, rate))
    assert kept == expected


@pytest.mark.parametrize(
    ("size", "uses", "expected"),
    [(16, 1, 0.2), (32, 1, 0.2), (64, 1, 0.2), (16, 10, 0.0625), (32, 10, 0.03125), (64, 10, 0.02)],
)
def test_step_table_of_resnet56(size: int, uses: int, expected: float) -> None:
    assert coarse_step(size, uses, 0.2) == Fraction(str(expected))


def test_a_step_is_never_less_than_one_channel() -> None:
    assert coarse_step(3, 1, 0.2) == Fraction(1, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 24, 64, 160, 2048])
@pytest.mark.parametrize("uses", [1, 4, 10])
def test_every_step_removes_a_channel_until_one_is_left(size: int, uses: int) -> None:
    rule, rate, kept = StepRule(), Fraction(1), size
    while kept > 1:
        rate = rule.narrowed(rate, coarse_step(size, uses, 0.1))
        assert rule.num_kept(size, rate) < kept
        kept = rule.num_kept(size, rate)


def test_ties_go_to_the_lower_channel_and_removed_channels_are_not_ranked() -> None:
    scores = np.array([0.0, 2.0, 0.0, 2.0, 5.0])
    assert importance_order(scores, [1, 2, 3, 4]) == [4, 1, 3, 2]


@pytest.mark.parametrize("rule", [StepRule(), RoundedRates()])
def test_a_rate_never_falls_below_zero_and_one_channel_stays(rule: StepRule) -> None:
    assert rule.narrowed(Fraction(1, 5), Fraction(1, 5)) == 0
    assert rule.narrowed(Fraction(1, 10), Fraction(1, 5)) == 0
    assert rule.narrowed(Fraction(1, 5), Fraction(1, 10)) == Fraction(1, 10)
    assert [rule.num_kept(16, rate) for rate in (Fraction(0), Fraction(1, 16), Fraction(17, 256))] == [1, 1, 2]


def test_two_decimal_rates_span_a_fifth_in_steps_of_one_channel() -> None:
    rates = two_decimal_rates(Fraction(1, 2), 16)
    assert [tried for tried, _ in rates] == [Fraction(text) for text in ("0.5", "0.56", "0.62", "0.69")]
    assert [back for _, back in rates] == [Fraction(text) for text in ("0.4375", "0.5", "0.5625", "0.625")]


def test_reference_stands_for_all_quirks_in_the_fields_of_a_job() -> None:
    fields = {"search": {"quirks": "reference", "step": 0.1}, "net": {"padding": "tf_same"}}
    assert expand_reference(fields)["search"] == {"quirks": QUIRKS, "step": 0.1, "counter": "ekg"}
    for other in ({"search": {"quirks": QUIRKS}}, {"search": {}}, {"search": 1}, {}, None, "reference"):
        assert expand_reference(other) is other
    assert default_padding(QUIRKS) == default_padding(set(QUIRKS)) == "tf_same"
    assert default_padding(QUIRKS[1:]) == default_padding(()) == "torch"
