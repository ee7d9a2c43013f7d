"""One file of rows over runs: in the format that its name says, with every run that is left out named."""

import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ekgsearch.cli import cli
from ekgsearch.errors import StorageError
from ekgsearch.report.export import export
from ekgsearch.report.html import write_report
from ekgsearch.report.tables import ROW_TYPES, load_table
from ekgsearch.rows.run import SummaryRow
from ekgsearch.storage.tables import read_table, schema, write_table


@pytest.mark.parametrize("table", list(ROW_TYPES))
def test_export_joins_the_rows_of_runs_and_keeps_the_schema(finished_run, write_run, tmp_path, table):
    other = write_run(tmp_path / "other", seed=2, reduction=0.3)
    out = tmp_path / "new" / "all.parquet"
    num_rows = export([finished_run, other], out, table)
    rows = read_table(out)
    assert num_rows == len(rows)
    assert list(rows["run"].unique()) == ["resnet56-half", "other"]
    assert len(rows) == len(load_table(finished_run, table)) + len(load_table(other, table))
    written = pq.read_schema(out)
    for column in schema(ROW_TYPES[table]):
        assert written.field(column.name).type == column.type
        assert written.field(column.name).metadata[b"description"] == column.metadata[b"description"]


@pytest.mark.parametrize("table", ["summary", "iterations", "audit"])
def test_a_csv_file_is_text_with_the_same_rows(finished_run, write_run, tmp_path, table):
    other = write_run(tmp_path / "other", seed=2, uniform_top1=math.nan)
    for name in ("all.CSV", "all.parquet"):
        export([finished_run, other], tmp_path / name, table)
    assert (tmp_path / "all.CSV").read_text().startswith("run,")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "all.CSV", keep_default_na=False, na_values=["nan"]),
        pd.read_parquet(tmp_path / "all.parquet"),
        check_dtype=False,
    )


@pytest.mark.parametrize("name", ["all.xlsx", "all", "all.parquet.gz", ".csv"])
def test_another_suffix_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(StorageError, match=r"ends in \.parquet or \.csv"):
        export([tmp_path / "nowhere"], tmp_path / name)
    with pytest.raises(StorageError, match=r"ends in \.html"):
        write_report([tmp_path / "nowhere"], tmp_path / name)
    assert not list(tmp_path.iterdir())


def left_out(tmp_path: Path, write_run) -> dict[Path, str]:
    """Folders without a summary, and why."""
    begun = write_run(tmp_path / "begun", tables=("iterations",))
    write_table(begun / "tables" / "summary.parquet", [], SummaryRow)
    damaged = write_run(tmp_path / "damaged")
    (damaged / "tables" / "summary.parquet").write_bytes(b"PAR1")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file").touch()
    return {
        tmp_path / "nowhere": "expected a run directory, found nothing at",
        tmp_path / "file": "expected a run directory, found",
        tmp_path / "pictures": "is no run directory: expected job.yaml in it, found nothing",
        write_run(tmp_path / "stopped", tables=("iterations",)): "has no rows in table 'summary', which is written",
        begun: "has no rows in table 'summary', which is written when a run finishes",
        damaged: "is no whole parquet file",
    }


def test_every_run_that_is_left_out_is_named_with_the_reason(finished_run, write_run, tmp_path):
    reasons, out = left_out(tmp_path, write_run), tmp_path / "all.parquet"
    runs = list(map(str, reasons))
    done = CliRunner().invoke(cli, ["export", *runs[:3], str(finished_run), *runs[3:], "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert list(pd.read_parquet(out)["run"]) == ["resnet56-half"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert len(lines) == len(reasons)
    for line, (path, reason) in zip(lines, reasons.items(), strict=True):
        assert str(path) in line
        assert reason in line
    assert done.stdout == f"{out}: 1 row\n"


def test_nothing_left_is_an_error_that_names_all(write_run, tmp_path):
    reasons = left_out(tmp_path, write_run)
    with pytest.raises(StorageError, match="no rows of table 'summary'") as refused:
        export(list(reasons), tmp_path / "all.csv")
    for path, reason in reasons.items():
        assert str(path) in str(refused.value)
        assert reason in str(refused.value)
    assert not (tmp_path / "all.csv").exists()
    with pytest.raises(StorageError, match="no table is called 'losses'; the tables of a run are iterations, cand"):
        export(list(reasons), tmp_path / "all.csv", "losses")
