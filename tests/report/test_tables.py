"""Reading run directories."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ekgsearch.errors import StorageError
from ekgsearch.report.tables import load_run, load_table, rows_of
from ekgsearch.rows.run import SummaryRow
from ekgsearch.rows.search import IterationRow
from ekgsearch.storage.tables import read_arrow, read_table, write_arrow, write_table

RESULTS = Path(__file__).parents[2] / "results"


def test_a_finished_run_has_all_tables(finished_run):
    run = load_run(finished_run)
    assert run.name == "resnet56-half"
    assert run.missing == ()
    assert isinstance(run.summary, SummaryRow)
    assert run.summary.architecture == "resnet56"
    assert len(run.candidates) == run.summary.candidates
    assert "resnet56-cifar10-50" in run.job
    assert run.provenance["torch"] == "2.15.0"


def test_a_stopped_run_says_which_tables_it_lacks(write_run, tmp_path):
    run = load_run(write_run(tmp_path / "stopped", tables=("iterations", "candidates")))
    assert run.missing == ("subnetworks", "epochs", "device_hours", "summary")
    assert run.summary is None
    assert list(run.epochs.columns)[:3] == ["run", "phase", "network"]


def test_a_table_without_rows_counts_as_missing(write_run, tmp_path):
    folder = write_run(tmp_path / "begun", tables=("iterations",))
    write_table(folder / "tables" / "summary.parquet", [], SummaryRow)
    assert "summary" in load_run(folder).missing


def test_the_name_of_a_run_without_rows_is_its_folder(write_run, tmp_path):
    assert load_run(write_run(tmp_path / "nothing-yet", tables=())).name == "nothing-yet"


def test_a_folder_that_is_no_run_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "cat.jpg").touch()
    with pytest.raises(StorageError, match=r"job\.yaml.*cat\.jpg"):
        load_run(tmp_path)
    with pytest.raises(StorageError, match="found nothing at"):
        load_run(tmp_path / "nowhere")


def test_damaged_provenance_is_named(write_run, tmp_path):
    folder = write_run(tmp_path / "run", tables=())
    (folder / "provenance.json").write_text("{")
    with pytest.raises(StorageError, match=r"provenance\.json"):
        load_run(folder)


def test_a_table_of_another_version_is_refused_with_the_missing_columns(finished_run, write_run, tmp_path):
    folder = write_run(tmp_path / "run", tables=("iterations",))
    table = pq.read_table(folder / "tables" / "iterations.parquet").drop_columns(["score"])
    pq.write_table(table.replace_schema_metadata(None), folder / "tables" / "iterations.parquet")
    with pytest.raises(StorageError, match="lacks the columns score"):
        load_run(folder)


def test_an_unknown_table_is_refused_with_the_known_ones(finished_run):
    with pytest.raises(StorageError, match="iterations, candidates"):
        load_table(finished_run, "losses")


def test_a_table_from_before_a_column_was_added_reads_with_its_default(write_run, tmp_path):
    path = write_run(tmp_path / "old") / "tables" / "epochs.parquet"
    frame = read_arrow(path)
    write_arrow(path, frame.drop_columns(["ema_top1", "loss_views", "skipped_steps"]))
    epochs = load_run(tmp_path / "old").epochs
    assert epochs["ema_top1"].isna().all()
    assert (epochs["loss_views"] == 0).all()
    assert (epochs["skipped_steps"] == 0).all()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.parquet")), ids=lambda path: path.name)
def test_every_committed_table_can_be_read_and_added_to(path):
    """`ekgsearch bench` adds rows to one of them."""
    assert len(read_table(path))


def test_a_method_that_tries_no_candidates_lacks_none(write_run, tmp_path):
    folder = write_run(tmp_path / "run", tables=("iterations", "summary"))
    path = folder / "tables/iterations.parquet"
    rows = [IterationRow(**row) for row in rows_of(read_table(path).assign(num_candidates=0))]
    write_table(path, rows, IterationRow)
    assert "candidates" not in load_run(folder).missing
