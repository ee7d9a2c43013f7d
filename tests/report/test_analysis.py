"""`results/analysis.md`: its queries give what it prints, in pandas as written and in DuckDB."""

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "results" / "analysis.md").read_text()
QUERIES = list(
    zip(re.findall(r"```python\n(.*?)```", TEXT, re.S), re.findall(r"```text\n(.*?)```", TEXT, re.S), strict=True)
)
TRIALS, RUNS = (f"read_parquet('{ROOT}/results/tune_digits.{name}.parquet')" for name in ("trials", "summary"))


def cells(text: str) -> list[list[str]]:
    """The words of the lines of a table; labels hold single spaces."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(("query", "printed"), QUERIES, ids=["device-hour", "step", "epruner"])
def test_a_query_prints_what_the_page_shows(query: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", query], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert cells(done.stdout) == cells(printed)


def numbers(printed: str, first: int, columns: int) -> list[list[float]]:
    lines = [line.split() for line in printed.splitlines() if line.strip()]
    return [[float(cell) for cell in line[-columns:]] for line in lines[first:]]


def rounded(query: str, places: int) -> list[list[float]]:
    return [[round(float(value), places) for value in row] for row in duckdb.sql(query).fetchall()]


def test_duckdb_finds_the_best_settings_per_device_hour() -> None:
    found = duckdb.sql(
        f"""select label, accuracy, macs_reduction, 60 * device_hours as minutes,
            100 * macs_reduction / (60 * device_hours) as removed_per_minute
            from {TRIALS} where full_accuracy - accuracy <= 1 order by removed_per_minute desc limit 4"""
    ).fetchall()
    printed = cells(QUERIES[0][1])[1:]
    assert [row[0] for row in found] == [line[0] for line in printed]
    assert [[round(value, 3) for value in row[1:]] for row in found] == [list(map(float, line[1:])) for line in printed]


def test_duckdb_finds_what_the_step_changes() -> None:
    found = rounded(
        f"""select search_reduction, {
            ", ".join(
                f"max({value}) filter (search_step = {step})"
                for value in ("iterations", "candidates", "final_top1")
                for step in (0.3, 0.5)
            )
        }
            from {RUNS} where method = 'ekg' group by search_reduction order by search_reduction""",
        2,
    )
    assert found == numbers(QUERIES[1][1], 3, 7)


def test_duckdb_finds_where_epruner_is_ahead() -> None:
    found = rounded(
        f"""with ekg as (select max(macs_reduction) as x, max(final_top1) as y from {RUNS}
                where method = 'ekg' group by search_reduction),
            lines as (select x, y, lead(x) over (order by x) as x2, lead(y) over (order by x) as y2 from ekg)
            select search_beta, macs_reduction, final_top1, y + (y2 - y) * (macs_reduction - x) / (x2 - x) as ekg_top1,
                final_top1 - ekg_top1 as ahead
            from {RUNS} join lines on macs_reduction >= x and macs_reduction < x2
            where method = 'epruner' and macs_reduction between 0.3 and 0.6 order by macs_reduction""",
        3,
    )
    assert found == numbers(QUERIES[2][1], 1, 5)


def test_the_pictures_are_there() -> None:
    names = re.findall(r"!\[[^]]*\]\(([^)]*)\)", TEXT)
    assert len(names) == len(QUERIES)
    assert all((ROOT / "results" / name).is_file() for name in names)
