"""Results of trials, from their run directories: metrics, device-hours, rows of the table of trials."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ekgsearch.records import canonical_json
from ekgsearch.runtime.ledger import LEDGER, read_ledger
from ekgsearch.sections.tune import Direction, Metric
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.tables import read_table
from ekgsearch.sweep.hours import Hours, hours_of
from ekgsearch.sweep.job import short_label
from ekgsearch.sweep.record import Entry
from ekgsearch.sweep.rows import COLUMN_OF, TrialRow


def summary_of(run_dir: Path) -> Mapping[str, Any] | None:
    """The last row of a run's summary; None where it has none."""
    path = run_dir / "tables" / "summary.parquet"
    if not path.is_file():
        return None
    rows = read_table(path).to_dict("records")
    return {str(name): value for name, value in rows[-1].items()} if rows else None


def lacks_latency(entry: Entry) -> bool:
    """Whether a trial has finished whose latency has not been measured."""
    summary = summary_of(entry.trial.job.run_dir) if entry.state == "finished" else None
    return summary is not None and math.isnan(summary["slim_latency_ms"])


def metrics_of(run_dir: Path, hours: Hours) -> dict[str, float]:
    """What a finished trial is judged by, but for its latency.

    Args:
        run_dir: the run.
        hours: its device-hours.
    """
    summary = summary_of(run_dir)
    assert summary is not None, "a finished run has a summary"
    return {
        "accuracy": float(summary["final_top1"]),
        "kept_macs": float(summary["kept_macs"]),
        "kept_params": float(summary["kept_params"]),
        "device_hours": hours.alone,
    }


def trial_hours(run_dirs: Iterable[Path]) -> dict[str, Hours]:
    """Device-hours of the trials with these run directories, by name."""
    folders = list(run_dirs)
    return hours_of(
        {folder.name: read_ledger(folder / LEDGER) for folder in folders},
        {folder.name: _decisions(folder) for folder in folders},
    )


def spent_hours(run_dirs: Iterable[Path]) -> float:
    """Device-hours that all of these runs have spent."""
    return sum(row.device_hours for folder in run_dirs for row in read_ledger(folder / LEDGER))


def trial_rows(sweep: str, entries: Sequence[Entry], directions: Mapping[Metric, Direction]) -> list[TrialRow]:
    """The rows of the table of trials.

    Args:
        sweep: its name.
        entries: its trials.
        directions: metrics and whether they are to be large (`max`) or small (`min`).
    """
    hours = trial_hours(entry.trial.job.run_dir for entry in entries)
    varied = varying([entry.trial.values for entry in entries])
    found = [_row(sweep, entry, hours[entry.trial.name], varied) for entry in entries]
    judged: list[dict[str, float]] = [
        {metric: float(getattr(row, column)) for metric, column in COLUMN_OF.items()} if row.state == "finished" else {}
        for row in found
    ]
    on_front = front(judged, directions)
    return [replace(row, on_front=number in on_front) for number, row in enumerate(found)]


def front(judged: Sequence[Mapping[str, float]], directions: Mapping[Metric, Direction]) -> set[int]:
    """Indices of those that no other one equals or surpasses in every metric and surpasses in one.

    Args:
        judged: metrics of each; one that lacks a metric is not on the front.
        directions: metrics and whether they are to be large (`max`) or small (`min`).
    """
    signs = {name: 1 if direction == "max" else -1 for name, direction in directions.items()}
    points = {
        number: [sign * one[name] for name, sign in signs.items()]
        for number, one in enumerate(judged)
        if all(not math.isnan(one.get(name, math.nan)) for name in signs)
    }

    def is_surpassed(point: Sequence[float]) -> bool:
        return any(
            other != point and all(mine <= theirs for mine, theirs in zip(point, other, strict=True))
            for other in points.values()
        )

    return {number for number, point in points.items() if not is_surpassed(point)}


def varying(assignments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that have several values, in the order in which they come first."""
    names = list(dict.fromkeys(name for values in assignments for name in values))
    return [name for name in names if len({canonical_json(one[name]) for one in assignments if name in one}) > 1]


def _row(sweep: str, entry: Entry, hours: Hours, varied: Sequence[str]) -> TrialRow:
    trial = entry.trial
    summary = summary_of(trial.job.run_dir) or {}
    finished = entry.state == "finished"
    last = list(entry.reports.values())[-1] if entry.reports else math.nan
    return TrialRow(
        sweep=sweep,
        run=trial.name,
        number=entry.number,
        label=short_label(trial.values, varied) or trial.name,
        values={name: canonical_json(value) for name, value in trial.values.items()},
        method=trial.job.search.method,
        state=entry.state or "waiting",
        reason=entry.reason,
        epochs=int(max((progress for progress in entry.reports), default=0)),
        accuracy=float(summary["final_top1"]) if finished else last,
        full_accuracy=float(summary.get("full_top1", math.nan)),
        kept_macs=int(summary.get("kept_macs", 0)),
        macs_reduction=float(summary.get("macs_reduction", math.nan)),
        kept_params=int(summary.get("kept_params", 0)),
        params_reduction=float(summary.get("params_reduction", math.nan)),
        latency_ms=float(summary.get("slim_latency_ms", math.nan)),
        latency_ratio=float(summary.get("latency_ratio", math.nan)),
        latency_noise=float(summary.get("latency_noise", math.nan)),
        device_hours=hours.alone,
        added_hours=hours.added,
        saved_hours=hours.saved,
    )


def _decisions(run_dir: Path) -> int:
    path = run_dir / "journal.jsonl"
    return sum(line["kind"] == "iteration" for line in read_journal(path)) if path.is_file() else 0
