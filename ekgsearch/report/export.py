"""Rows that several runs have in one table, as one file or as a partitioned data set."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json
from ekgsearch.report.published import published_rows
from ekgsearch.report.tables import ROW_TYPES, load_table
from ekgsearch.report.unfinished import unfinished_rows
from ekgsearch.rows.run import SummaryRow
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.tables import arrow_bytes, arrow_table, fitted, read_arrow, schema, write_arrow
from ekgsearch.sweep.job import TRIALS
from ekgsearch.sweep.rows import TABLES as SWEEP_TABLES

log = logging.getLogger(__name__)


def _write_csv(path: Path, table: pa.Table) -> None:
    frame = table.to_pandas()
    for column in table.schema:
        if pa.types.is_map(column.type):
            frame[column.name] = [canonical_json(dict(pairs)) for pairs in frame[column.name]]
    write_atomically(path, frame.to_csv(index=False, na_rep="nan").encode())


FORMATS: Mapping[str, Callable[[Path, pa.Table], None]] = {".parquet": write_arrow, ".csv": _write_csv}
"""What writes a file of each suffix; CSV has names of columns, but neither types nor descriptions, and maps as JSON."""


def export(
    runs: Sequence[Path | str],
    out: Path | str,
    table: str = "summary",
    *,
    partition_by: Sequence[str] = (),
    published: bool = False,
    unfinished: bool = False,
) -> int:
    """Write the rows that several runs have in one table, in the order given.

    A run that has none, or is no sound run directory, is left out, and a warning says why. A sweep stands for all of
    its trials. The `run` column tells the runs apart; in parquet files, column types and descriptions are those of the
    table. Files that other versions wrote are joined by the names of their columns.

    Args:
        runs: directories of runs and sweeps, and parquet files of earlier exports, also of other versions.
        out: the file to write, `.parquet` or `.csv`, replaced if it is there; with `partition_by` a folder or the
            address of a bucket, to which a file is added for each combination of values (an equal one is replaced).
        table: name of the table, of runs (`ROW_TYPES`) or of sweeps (trials, spans).
        partition_by: columns whose values become folders, `method=ekg/dataset=cifar10/`.
        published: add the results of the papers; for the summary alone.
        unfinished: add runs that have not finished, with their state; for the summary alone.

    Returns:
        The number of rows written.

    Raises:
        StorageError: the suffix of the file, the table or a column is unknown, every run was left out, or the disk
            refuses.
    """
    write = _writer(out, table, partition_by)
    if table not in ROW_TYPES | SWEEP_TABLES:
        raise StorageError(
            f"no table is called {table!r}; the tables of a run are {', '.join(ROW_TYPES)}, those of a sweep "
            f"{', '.join(SWEEP_TABLES)}"
        )
    row_type = (ROW_TYPES | SWEEP_TABLES)[table]
    if table != "summary" and (published or unfinished):
        option = "--published" if published else "--all"
        raise StorageError(f"{option} adds rows to the table summary, not to {table}; leave one of them out")
    found, left_out = [], []
    for run in (one for given in runs for one in ([Path(given)] if table in SWEEP_TABLES else _runs_of(given))):
        try:
            found.append(_rows_of_run(run, table, unfinished))
        except StorageError as error:
            left_out.append(str(error))
    if published:
        found.append(arrow_table(published_rows(), SummaryRow))
    if not found:
        reasons = "; ".join(left_out) or "no run directory was given"
        raise StorageError(f"no rows of table {table!r} to write to {out}: {reasons}")
    for reason in left_out:
        log.warning("left out: %s", reason)
    joined = pa.concat_tables(found).replace_schema_metadata(schema(row_type).metadata)
    write(joined)
    return int(joined.num_rows)


def _writer(out: Path | str, table: str, partition_by: Sequence[str]) -> Callable[[pa.Table], None]:
    """What writes the rows; mistakes in the options are told before anything is read."""
    if partition_by:
        known = schema((ROW_TYPES | SWEEP_TABLES)[table]).names if table in ROW_TYPES | SWEEP_TABLES else []
        unknown = [name for name in partition_by if known and name not in known]
        if unknown:
            raise StorageError(f"--partition-by {unknown[0]}: the table {table} has the columns {', '.join(known)}")
        return lambda rows: _write_partitions(str(out), rows, partition_by)
    path = Path(out)
    write = FORMATS.get(path.suffix.lower())
    if write is None:
        raise StorageError(
            f"--out {out}: expected a file that ends in {' or '.join(FORMATS)}, the format to write, or --partition-by "
            "for a folder or bucket"
        )

    def write_file(rows: pa.Table) -> None:
        make_folder(path.parent)
        write(path, rows)

    return write_file


def _write_partitions(uri: str, rows: pa.Table, names: Sequence[str]) -> None:
    """Write one file for each combination of values, named by its content."""
    if "://" not in uri:
        make_folder(Path(uri))
    store = open_store(uri)
    for values in rows.select(list(names)).group_by(list(names)).aggregate([]).to_pylist():
        part = rows
        for name, value in values.items():
            column = part.column(name)
            part = part.filter(pc.is_null(column) if value is None else pc.equal(column, value))
        part = part.drop_columns(list(names))
        data = arrow_bytes(part)
        folder = "/".join(f"{name}={_folder_name(value)}" for name, value in values.items())
        store.put(f"{folder}/{hashlib.sha256(data).hexdigest()[:16]}.parquet", data)


def _folder_name(value: object) -> str:
    """A value as readers of such data sets expect it in the name of a folder."""
    if value is None:
        return "__HIVE_DEFAULT_PARTITION__"
    return "".join(letter if letter.isalnum() or letter in "._- " else f"%{ord(letter):02X}" for letter in str(value))


def _runs_of(given: Path | str) -> list[Path]:
    """The runs that a directory stands for: itself, or the trials of a sweep."""
    trials = Path(given) / TRIALS
    return sorted(trials.iterdir()) if trials.is_dir() else [Path(given)]


def _rows_of_run(run: Path, table: str, unfinished: bool) -> pa.Table:
    if run.suffix == ".parquet" and run.is_file():  # an earlier export
        return fitted(read_arrow(run), (ROW_TYPES | SWEEP_TABLES)[table], str(run))
    if table in SWEEP_TABLES:
        path = run / "tables" / f"{table}.parquet"
        return fitted(read_arrow(path), SWEEP_TABLES[table], str(path))
    rows = load_table(run, table)
    if rows.num_rows:
        return rows
    if unfinished:
        return arrow_table(unfinished_rows(run), SummaryRow)
    when = ", which is written when a run finishes (--all adds runs that have not)" if table == "summary" else ""
    raise StorageError(f"{run} has no rows in table {table!r}{when}")
