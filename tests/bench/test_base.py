"""Benchmarks: pairs are interleaved, rows keep their machine, bad settings are refused in words."""

from pathlib import Path

import pytest

from ekgsearch.bench.base import Measurement, abab, ratio, run_bench, table
from ekgsearch.errors import JobError


def test_pairs_are_interleaved_after_one_call_of_each() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    first, second = abab(
        lambda: calls.append("a"), lambda: calls.append("b"), pairs=3, clock=lambda: float(next(ticks))
    )
    assert calls == ["a", "b"] * 4
    assert first == second == [1.0, 1.0, 1.0]


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    found = ratio("case", "time", [2.0, 9.0, 6.0], [1.0, 3.0, 1.0])
    assert (found.value, found.low, found.high, found.repeats) == (3.0, 2.0, 6.0, 3)


def test_the_table_has_one_line_per_measurement() -> None:
    text = table([Measurement.count("sliced", "MACs", "MAC", 12.0), Measurement.count("masked", "MACs", "MAC", 24.0)])
    assert [line.split()[0] for line in text.splitlines()] == ["case", "sliced", "masked"]


def test_an_unknown_benchmark_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text("bench: nothing\n")
    with pytest.raises(JobError, match="expected one of"):
        run_bench(path)
