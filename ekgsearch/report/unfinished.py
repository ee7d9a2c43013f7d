"""Runs that have not finished, as rows of the summary."""

from pathlib import Path

from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_model
from ekgsearch.pipeline.settings import settings_of
from ekgsearch.rows.run import SummaryRow, partial_summary
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
    costs = {}
    if decisions:
        (full_macs, macs), (full_params, params) = ((decisions[0][of], decisions[-1][of]) for of in ("macs", "params"))
        costs = {
            "full_macs": full_macs,
            "kept_macs": macs,
            "macs_reduction": 1 - macs / full_macs,
            "full_params": full_params,
            "kept_params": params,
            "params_reduction": 1 - params / full_params,
        }
    return [
        partial_summary(
            run=run.name,
            architecture=job.net.name or job.net.factory or "",
            **settings_of(job),
            **costs,
            counter=job.search.counter,
            iterations=max(0, len(decisions) - 1),
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
