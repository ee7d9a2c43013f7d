"""One file of rows over runs: in the format that its name says, with every run that is left out named."""

import json
import math
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ekgsearch.cli import cli
from ekgsearch.errors import StorageError
from ekgsearch.report.export import export
from ekgsearch.report.html import write_report
from ekgsearch.report.published import published_results
from ekgsearch.report.tables import ROW_TYPES, load_table
from ekgsearch.rows.run import SummaryRow
from ekgsearch.storage.objects import open_store
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
    text = pd.read_csv(tmp_path / "all.CSV", keep_default_na=False, na_values=["nan"])
    typed = pd.read_parquet(tmp_path / "all.parquet")
    if table == "summary":
        text["settings"] = text["settings"].map(json.loads)
        typed["settings"] = typed["settings"].map(dict)
    pd.testing.assert_frame_equal(text.astype(object), typed.astype(object).fillna(np.nan), check_dtype=False)


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


@pytest.fixture
def runs(finished_run, write_run, tmp_path):
    """Runs of two methods, the results of a sweep's trials among them."""
    settings = {"search.reduction": "0.3", "finetune.milestones": "[0.5,0.75]"}
    write_run(tmp_path / "sweep" / "trials" / "one", method="epruner", search_beta=0.73, settings=settings)
    write_run(tmp_path / "sweep" / "trials" / "two", method="epruner", search_beta=0.6, dataset="digits")
    return [finished_run, tmp_path / "sweep"]


def test_a_sweep_stands_for_its_trials_in_pandas_and_duckdb(runs, tmp_path):
    out = tmp_path / "all.parquet"
    assert export(runs, out) == 3
    frame = pd.read_parquet(out)
    assert frame["run"].tolist() == ["resnet56-half", "one", "two"]
    assert frame["search_beta"].isna().tolist() == [True, False, False]
    query = (
        "select run, search_beta, settings['finetune.milestones'] as milestones from read_parquet(?) "
        "where method = 'epruner' order by search_beta desc"
    )
    found = duckdb.execute(query, [str(out)]).fetchall()
    assert [row[:2] for row in found] == [("one", 0.73), ("two", 0.6)]
    assert json.loads(found[0][2]) == [0.5, 0.75]
    assert found[1][2] is None


def test_a_partitioned_export_is_read_by_pandas_and_duckdb_and_again_equal(runs, tmp_path):
    folder = tmp_path / "partitioned"
    for _ in range(2):
        assert export(runs, folder, partition_by=["method", "dataset"]) == 3
    places = sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    assert places == ["method=ekg/dataset=cifar10", "method=epruner/dataset=cifar10", "method=epruner/dataset=digits"]
    counted = duckdb.execute(
        "select method, dataset, count(*) from read_parquet(?, hive_partitioning = true) group by all order by all",
        [f"{folder}/**/*.parquet"],
    ).fetchall()
    assert counted == [("ekg", "cifar10", 1), ("epruner", "cifar10", 1), ("epruner", "digits", 1)]
    frame = pd.read_parquet(folder)
    assert sorted(frame["run"]) == ["one", "resnet56-half", "two"]
    assert set(frame["method"]) == {"ekg", "epruner"}


def test_published_rows_have_the_same_columns(runs, tmp_path):
    num_rows = export(runs, tmp_path / "all.parquet", published=True)
    frame = pd.read_parquet(tmp_path / "all.parquet")
    published = frame[frame["state"] == "published"]
    assert len(published) == len(published_results()) == num_rows - 3
    assert published["source"].str.len().min() > 0
    row = published[(published["method"] == "EKG") & (published["architecture"] == "resnet56")].iloc[0]
    assert 0 < row["macs_reduction"] < 1
    assert row["full_top1"] > 90


def test_unfinished_runs_are_rows_with_their_state(runs, tmp_path):
    for name, state in (("cut", "interrupted"), ("asha", "stopped")):
        run = tmp_path / "unfinished" / name
        run.mkdir(parents=True)
        (run / "job.yaml").write_text(
            "output: .\nnet: {name: resnet20, weights: w}\nsearch: {reduction: 0.3}\nwarmup: {epochs: 0}\n"
        )
        if state == "stopped":
            (run / "stopped.txt").write_text("stopped by the scheduler after epoch 1 of finetune-slim")
    folders = [*runs, tmp_path / "unfinished" / "cut", tmp_path / "unfinished" / "asha"]
    assert export(folders, tmp_path / "finished.parquet") == 3
    assert export(folders, tmp_path / "all.parquet", unfinished=True) == 5
    frame = pd.read_parquet(tmp_path / "all.parquet").set_index("run")
    assert frame.loc["cut", "state"] == "interrupted"
    assert frame.loc["asha", "state"] == "stopped"
    assert frame.loc["asha", "search_reduction"] == 0.3
    assert dict(frame.loc["asha", "settings"])["net.weights"].endswith('/asha/w"')


def test_files_of_other_versions_are_joined_by_the_names_of_their_columns(finished_run, write_run, tmp_path):
    older = write_run(tmp_path / "older")
    path = older / "tables" / "summary.parquet"
    table = pq.read_table(path)
    table = table.drop_columns(["settings", "search_beta", "version"]).append_column("of_tomorrow", pa.array([1]))
    pq.write_table(table.select(table.column_names[::-1]).replace_schema_metadata(None), path)
    assert export([finished_run, older], tmp_path / "all.parquet") == 2
    frame = pd.read_parquet(tmp_path / "all.parquet")
    assert frame["run"].tolist() == ["resnet56-half", "older"]
    assert frame["version"].tolist()[1] == ""
    assert "of_tomorrow" not in frame
    assert export([path, tmp_path / "all.parquet"], tmp_path / "again.parquet") == 3
    assert pd.read_parquet(tmp_path / "again.parquet")["run"].tolist() == ["older", "resnet56-half", "older"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition_by": ["colour"]}, "--partition-by colour: the table summary has the columns run"),
        ({"table": "epochs", "published": True}, "--published adds rows to the table summary"),
        ({"table": "epochs", "unfinished": True}, "--all adds rows to the table summary"),
    ],
)
def test_options_that_do_not_fit_are_refused(runs, tmp_path, options, words):
    with pytest.raises(StorageError, match=words):
        export(runs, tmp_path / "all.parquet", **options)
    assert not (tmp_path / "all.parquet").exists()


def test_a_partitioned_export_lies_in_a_bucket(runs, s3_server, s3_keys):
    num_rows = export(runs, s3_server.store_uri, partition_by=["method"])
    store = open_store(s3_server.store_uri)
    names = list(store.sizes())
    assert num_rows == 3
    assert sorted({name.partition("/")[0] for name in names}) == ["method=ekg", "method=epruner"]
    tables = [pq.read_table(pa.BufferReader(store.get(name))) for name in names]
    assert sum(table.num_rows for table in tables) == 3
