"""Rows of the tables of a sweep."""

import math
from dataclasses import dataclass

from ekgsearch.rows.column import column
from ekgsearch.sections.tune import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial of a sweep."""

    sweep: str = column("name of the sweep")
    run: str = column("name of the trial, which is that of its run directory: hash of what it varies")
    number: int = column("number of its proposal, from 0")
    label: str = column("what it varies, in few words")
    values: dict[str, str] = column(  # noqa: RUF009 (it is a field)
        "varied fields of the job by dotted name, their values as JSON"
    )
    method: str = column("search method")
    state: str = column(
        "finished; stopped (by the scheduler); failed (by its own error); died (its process); interrupted (goes on "
        "with the next call); waiting"
    )
    reason: str = column("why it did not finish; empty where it did")
    epochs: int = column("epochs of the fine-tuning whose accuracy is known")
    accuracy: float = column(
        "test accuracy of the slim network, percent: after the fine-tuning where the trial finished, else after the "
        "last epoch that is known; NaN before the first"
    )
    full_accuracy: float = column("test accuracy of the unpruned network, percent; NaN unless finished", math.nan)
    kept_macs: int = column("multiply-accumulates per image of the slim network; 0 unless finished", 0)
    macs_reduction: float = column("share of the multiply-accumulates removed, 0..1; NaN unless finished", math.nan)
    kept_params: int = column("parameters of the slim network; 0 unless finished", 0)
    params_reduction: float = column("share of the parameters removed, 0..1; NaN unless finished", math.nan)
    latency_ms: float = column(
        "median time of one image through the slim network, milliseconds, measured while no trial ran; NaN where it "
        "was not",
        math.nan,
    )
    latency_ratio: float = column("time of the unpruned network over it; above 1 the slim one is faster", math.nan)
    latency_noise: float = column("ratio of two equal passes; a latency_ratio within it tells nothing", math.nan)
    device_hours: float = column("device-hours that the trial would have cost by itself: added and saved ones")
    added_hours: float = column("device-hours that the trial has spent, all attempts together")
    saved_hours: float = column("device-hours that other trials have spent on what it took over from them")
    on_front: bool = column(
        "whether no other finished trial is at least as good in every metric and better in one", False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRow:
    """One stretch of time in which a trial worked at one phase."""

    sweep: str = column("name of the sweep")
    run: str = column("name of the trial")
    phase: str = column("instance of the phase, such as finetune-slim")
    call: int = column("call of the command that it happened in, from 1")
    start_seconds: float = column("begin, seconds after the start of this call")
    end_seconds: float = column("end, seconds after the start of this call")
    producer: str = column("trial that has computed the phase; another one where it was taken over")
    end: str = column("committed, or what the trial ended with: stopped, failed, died, interrupted")


TABLES: dict[str, type] = {"trials": TrialRow, "spans": SpanRow}
"""Row type of every table of a sweep, by file name without ending."""

COLUMN_OF: dict[Metric, str] = {
    "accuracy": "accuracy",
    "kept_macs": "kept_macs",
    "kept_params": "kept_params",
    "latency": "latency_ms",
    "device_hours": "device_hours",
}
"""Column of the table of trials by metric."""
