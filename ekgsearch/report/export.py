"""One file with the rows that several runs have in one table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from ekgsearch.errors import StorageError
from ekgsearch.report.tables import ROW_TYPES, load_table, rows_of
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.tables import write_table

log = logging.getLogger(__name__)


def _write_csv(path: Path, rows: Sequence[Any], row_type: type) -> None:
    text = pd.DataFrame(rows, columns=[column.name for column in fields(row_type)]).to_csv(index=False, na_rep="nan")
    write_atomically(path, text.encode())


FORMATS: Mapping[str, Callable[[Path, Sequence[Any], type], None]] = {".parquet": write_table, ".csv": _write_csv}
"""What writes a file of each suffix; CSV has the names of the columns, but neither their types nor descriptions."""


def export(runs: Sequence[Path | str], out: Path | str, table: str = "summary") -> int:
    """Write one file with the rows that several runs have in one table, in the order given.

    A run that has none, or is no sound run directory, is left out, and a warning says why. The `run` column tells the
    runs apart; in a parquet file column types and descriptions are those of the table.

    Args:
        runs: run directories.
        out: the file to write, `.parquet` or `.csv`; replaced if it is there.
        table: name of the table, see `ROW_TYPES`.

    Returns:
        The number of rows written.

    Raises:
        StorageError: the suffix of the file or the table is unknown, every run was left out, or the disk refuses.
    """
    path = Path(out)
    write = FORMATS.get(path.suffix.lower())
    if write is None:
        raise StorageError(f"--out {path}: expected a file that ends in {' or '.join(FORMATS)}, the format to write")
    if table not in ROW_TYPES:
        raise StorageError(f"no table is called {table!r}; the tables of a run are {', '.join(ROW_TYPES)}")
    rows: list[Any] = []
    left_out = []
    for run in runs:
        try:
            rows += _rows_of_run(run, table)
        except StorageError as error:
            left_out.append(str(error))
    if not rows:
        reasons = "; ".join(left_out) or "no run directory was given"
        raise StorageError(f"no rows of table {table!r} to write to {path}: {reasons}")
    for reason in left_out:
        log.warning("left out: %s", reason)
    make_folder(path.parent)
    write(path, rows, ROW_TYPES[table])
    return len(rows)


def _rows_of_run(run: Path | str, table: str) -> list[Any]:
    frame = load_table(run, table)
    if frame.empty:
        when = ", which is written when a run finishes" if table == "summary" else ""
        raise StorageError(f"{run} has no rows in table {table!r}{when}")
    try:
        return [ROW_TYPES[table](**row) for row in rows_of(frame)]
    except TypeError as error:
        raise StorageError(f"{run}: rows of table {table!r} cannot be read: {error}") from error
