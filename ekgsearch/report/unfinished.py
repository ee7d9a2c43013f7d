"""Runs that have not finished, as rows of the summary."""

import math
from pathlib import Path

from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_model
from ekgsearch.pipeline.settings import settings_of
from ekgsearch.rows.run import SummaryRow
from ekgsearch.runtime.ledger import LEDGER, read_ledger
from ekgsearch.storage.journal import read_journal
from ekgsearch.sweep.job import STOPPED_FILE


def unfinished_rows(run: Path) -> list[SummaryRow]:
    """The row of a run that has no summary: its settings, its state and what it has cost.

    What is measured at the end is NaN, and 0 where it is a whole number.

    Raises:
        StorageError: the folder is no sound run directory.
        JobError: its job cannot be read.
    """
    job = load_model(run / "job.yaml", Job)
    hours = read_ledger(run / LEDGER)
    path = run / "journal.jsonl"
    lines = read_journal(path) if path.is_file() else []
    decisions = [line for line in lines if line["kind"] == "iteration"]
    nan = math.nan
    return [
        SummaryRow(
            run=run.name,
            architecture=job.net.name or job.net.factory or "",
            **settings_of(job),
            full_top1=nan,
            searched_top1=nan,
            recalibrated_top1=nan,
            final_top1=nan,
            best_top1=nan,
            plain_top1=nan,
            uniform_top1=nan,
            counter=job.search.counter,
            full_macs=int(decisions[0]["macs"]) if decisions else 0,
            kept_macs=int(decisions[-1]["macs"]) if decisions else 0,
            macs_reduction=1 - decisions[-1]["macs"] / decisions[0]["macs"] if decisions else nan,
            full_params=int(decisions[0]["params"]) if decisions else 0,
            kept_params=int(decisions[-1]["params"]) if decisions else 0,
            params_reduction=1 - decisions[-1]["params"] / decisions[0]["params"] if decisions else nan,
            full_latency_ms=nan,
            slim_latency_ms=nan,
            full_latency_batch64_ms=nan,
            slim_latency_batch64_ms=nan,
            iterations=max(0, len(decisions) - 1),
            candidates=0,
            device_hours=sum(row.device_hours for row in hours),
            device=", ".join(sorted({row.device for row in hours if row.device})),
            state=_state(run, [row.exit_state for row in hours]),
        )
    ]


def _state(run: Path, exits: list[str]) -> str:
    """How a run stands, from what it has left."""
    if (run / STOPPED_FILE).is_file():
        return "stopped"
    if "open" in exits:
        return "running"
    return next((state for state in ("failed", "died", "interrupted") if state in exits[-1:]), "interrupted")
