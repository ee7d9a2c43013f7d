"""Benchmarks: pairs are interleaved, rows keep their machine, bad settings are refused in words."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ekgsearch.bench import base
from ekgsearch.bench.base import BenchSettings, Measurement, abab, ratio, run_bench, table
from ekgsearch.errors import JobError, StorageError


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


def pretend(
    monkeypatch: pytest.MonkeyPatch, output: Path, run: Callable[[BenchSettings], Iterator[Measurement]]
) -> None:
    settings = BenchSettings(bench="pretended", output=str(output))
    monkeypatch.setattr(base, "load_bench", lambda *_: (SimpleNamespace(run=run, __doc__=""), settings))


def test_a_killed_benchmark_keeps_what_it_has_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(settings: BenchSettings) -> Iterator[Measurement]:
        yield Measurement.count("first", "MACs", "MAC", 1.0)
        yield Measurement.count("second", "MACs", "MAC", 2.0)
        raise KeyboardInterrupt

    asked: list[int] = []
    provenance = base.provenance
    monkeypatch.setattr(base, "provenance", lambda: asked.append(1) or provenance())
    pretend(monkeypatch, tmp_path / "new" / "rows.parquet", killed)
    with pytest.raises(KeyboardInterrupt):
        run_bench(tmp_path / "bench.yaml")
    rows = pd.read_parquet(tmp_path / "new" / "rows.parquet")
    assert list(rows.case) == ["first", "second"]
    assert asked == [1]


@pytest.mark.parametrize(
    ("output", "said"),
    [("file/rows.parquet", r"cannot write .*file/rows\.parquet"), ("other.parquet", "has columns .*expected .*bench")],
)
def test_a_file_that_takes_no_rows_is_said_before_anything_is_measured(
    output: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measuring(settings: BenchSettings) -> Iterator[Measurement]:
        raise AssertionError("it measures")
        yield

    (tmp_path / "file").touch()
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "other.parquet")
    pretend(monkeypatch, tmp_path / output, measuring)
    with pytest.raises(StorageError, match=said):
        run_bench(tmp_path / "bench.yaml")
