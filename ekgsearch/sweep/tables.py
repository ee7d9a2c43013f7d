"""Tables and ready jobs that a sweep leaves."""

import shutil
from collections.abc import Sequence
from typing import Any

from ekgsearch.jobfile import fields_text
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.tables import write_table
from ekgsearch.sweep.record import Record
from ekgsearch.sweep.results import trial_rows
from ekgsearch.sweep.rows import COLUMN_OF, TABLES, TrialRow
from ekgsearch.sweep.timeline import spans

BEST = "best"


def write_sweep(record: Record) -> list[TrialRow]:
    """Write the tables of a sweep, and a job for every trial of the front.

    `best.yaml` is the trial that is first by the first metric; `best/NAME.yaml` are all trials of the front. They
    write to run directories of their own next to the sweep.

    Returns:
        The rows of the table of trials.
    """
    sweep, folder = record.sweep, record.sweep.folder
    rows = trial_rows(folder.name, list(record.entries.values()), sweep.section.metrics)
    make_folder(folder / "tables")
    tables: dict[str, Sequence[Any]] = {"trials": rows, "spans": spans(folder.name, folder)}
    for name, found in tables.items():
        write_table(folder / "tables" / f"{name}.parquet", found, TABLES[name])
    _write_best(record, rows)
    return rows


def _write_best(record: Record, rows: list[TrialRow]) -> None:
    folder = record.sweep.folder
    metric, direction = next(iter(record.sweep.section.metrics.items()))
    on_front = [row for row in rows if row.on_front]
    shutil.rmtree(folder / BEST, ignore_errors=True)
    if not on_front:
        (folder / "best.yaml").unlink(missing_ok=True)
        return
    make_folder(folder / BEST)
    texts = {row.run: _job_text(record, row) for row in on_front}
    for name, text in texts.items():
        write_atomically(folder / BEST / f"{name}.yaml", text)
    sign = 1 if direction == "max" else -1
    first = max(on_front, key=lambda row: sign * getattr(row, COLUMN_OF[metric]))
    write_atomically(folder / "best.yaml", texts[first.run])


def _job_text(record: Record, row: TrialRow) -> bytes:
    """The job of a trial, which runs by itself into another run directory."""
    job = record.entries[row.run].trial.job
    folder = record.sweep.folder
    alone = job.model_copy(update={"output": str(folder.with_name(f"{folder.name}_{row.run}"))})
    words = f"# {row.label}: test accuracy {row.accuracy:.2f} %, {100 * row.macs_reduction:.1f} % of the MACs removed."
    return f"{words}\n{fields_text(alone)}".encode()
