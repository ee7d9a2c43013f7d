"""Tables, job and provenance of a run directory, as data frames and values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ekgsearch.errors import StorageError
from ekgsearch.rows.run import DeviceHoursRow, LatencyRow, SummaryRow
from ekgsearch.rows.search import AuditRow, CandidateRow, IterationRow, SubnetworkRow
from ekgsearch.rows.training import BaselineRow, EpochRow, StageRow
from ekgsearch.storage.tables import fitted, read_arrow, schema

ROW_TYPES: dict[str, type] = {
    "iterations": IterationRow,
    "candidates": CandidateRow,
    "subnetworks": SubnetworkRow,
    "epochs": EpochRow,
    "device_hours": DeviceHoursRow,
    "audit": AuditRow,
    "baselines": BaselineRow,
    "stages": StageRow,
    "latencies": LatencyRow,
    "summary": SummaryRow,
}
"""The tables of a run directory, `tables/NAME.parquet`, and the record type of their rows."""


@dataclass(frozen=True)
class RunTables:
    """Everything a report needs to know about one run.

    A table that the run did not write, or that has no rows, is a frame with the right columns and no rows, and its
    name is listed in `missing`.

    Attributes:
        name: name of the run: the `run` column of its tables, else the name of its folder.
        path: the run directory.
        job: text of job.yaml.
        provenance: content of provenance.json; empty when there is none.
        summary: the last summary row, or None while the run has not finished.
        missing: names of the tables without rows, among those that every run writes.
    """

    name: str
    path: Path
    job: str
    provenance: Mapping[str, Any]
    iterations: pd.DataFrame
    candidates: pd.DataFrame
    subnetworks: pd.DataFrame
    epochs: pd.DataFrame
    device_hours: pd.DataFrame
    audit: pd.DataFrame
    baselines: pd.DataFrame
    stages: pd.DataFrame
    latencies: pd.DataFrame
    summary: SummaryRow | None
    missing: tuple[str, ...]


def load_run(run_dir: Path | str) -> RunTables:
    """Read the tables, the job and the provenance of a run directory.

    Raises:
        StorageError: the folder is no run directory, or a file in it is damaged.
    """
    path = Path(run_dir)
    _check_is_run(path)
    summary = _read(path, "summary")
    frames = {name: _frame(_read(path, name)) for name in ROW_TYPES if name != "summary"}
    absent = {"audit", "baselines", "stages", "latencies"}
    if "slim" in set(frames["stages"]["network"]):
        absent |= {"iterations", "candidates"}
    if len(frames["iterations"]) > 1 and not frames["iterations"]["num_candidates"].any():
        absent |= {"candidates"}  # the method tries none
    missing = [name for name, frame in frames.items() if frame.empty and name not in absent]
    missing += ["summary"] if not summary.num_rows else []
    return RunTables(
        name=_name([_frame(summary), *frames.values()], path),
        path=path,
        job=(path / "job.yaml").read_text(encoding="utf-8"),
        provenance=_provenance(path / "provenance.json"),
        summary=SummaryRow(**summary.to_pylist(maps_as_pydicts="strict")[-1]) if summary.num_rows else None,
        missing=tuple(missing),
        **frames,
    )


def load_table(run_dir: Path | str, name: str) -> pa.Table:
    """Read one table of a run directory, with the columns of this version; without rows where the run has none.

    Raises:
        StorageError: no table has that name, the folder is no run directory, or the file is damaged.
    """
    if name not in ROW_TYPES:
        raise StorageError(f"no table is called {name!r}; the tables of a run are {', '.join(ROW_TYPES)}")
    path = Path(run_dir)
    _check_is_run(path)
    return _read(path, name)


def _frame(table: pa.Table) -> pd.DataFrame:
    """A table as a data frame; one without rows has columns of any type."""
    return table.to_pandas() if table.num_rows else pd.DataFrame(columns=table.column_names)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries of plain Python values."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _check_is_run(path: Path) -> None:
    if not path.is_dir():
        raise StorageError(
            f"expected a run directory, found {'a file' if path.exists() else 'nothing'} at {path}; check the path "
            "(results/NAME)"
        )
    if not (path / "job.yaml").is_file():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise StorageError(
            f"{path} is no run directory: expected job.yaml in it, found {inside}; "
            "give the folder that `ekgsearch run` wrote, one level below results/"
        )


def _read(path: Path, name: str) -> pa.Table:
    row_type = ROW_TYPES[name]
    file = path / "tables" / f"{name}.parquet"
    if not file.is_file():
        return schema(row_type).empty_table()
    return fitted(read_arrow(file), row_type, str(file))


def _name(frames: Sequence[pd.DataFrame], path: Path) -> str:
    names = [str(frame["run"].iloc[-1]) for frame in frames if not frame.empty]
    return names[0] if names else path.resolve().name


def _provenance(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StorageError(f"expected JSON in {file}: {error}; delete the file to report without provenance") from error
    if not isinstance(content, dict):
        raise StorageError(f"expected a JSON object in {file}, found {type(content).__name__}; delete the file")
    return content
