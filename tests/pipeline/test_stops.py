"""A listener that asks for a stop ends every phase within seconds, and the same call goes on to the same bytes."""

import time
from pathlib import Path

import pytest
from command_line import JOB

from ekgsearch.errors import Stopped
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.runtime.listener import Advanced, EpochEnded, Event, IterationMade, PhaseBegun, PhaseCommitted
from ekgsearch.storage.journal import read_journal
from ekgsearch.workers.backend import InProcessBackend

PHASES = ("pretrain", "warmup", "search", "bank", "finetune-slim", "evaluate")
SMALL = (
    "search.batch_size=60",
    "search.images_per_class=12",
    "finetune.epochs=1",
    "pretrain.epochs=2",
    "warmup.batch_size=16",
)


class Stopping:
    """Asks for a stop once some work of a phase is done; remembers what it hears and how long the stop took."""

    def __init__(self, phase: str | None) -> None:
        self.heard: list[Event] = []
        self._phase = phase
        self._current = ""
        self._asked_at: float | None = None
        self.seconds = 0.0

    def hear(self, event: Event) -> None:
        self.heard.append(event)
        if isinstance(event, PhaseBegun):
            self._current = event.phase
        is_work = isinstance(event, Advanced) and event.done > 0 and not event.is_end
        if self._asked_at is None and self._current == self._phase and (is_work or self._phase == "evaluate"):
            self._asked_at = time.monotonic()

    def stop_reason(self) -> str:
        return "the test has seen enough" if self._asked_at is not None else ""

    def stopped(self) -> float:
        """Seconds since the stop was asked for."""
        assert self._asked_at is not None
        return time.monotonic() - self._asked_at


def job_in(folder: Path) -> Job:
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    job = load_job(folder / "job.yaml", SMALL)
    job.run_dir.mkdir()
    return job


def bytes_of(job: Job) -> tuple[bytes, bytes]:
    return (job.run_dir / "journal.jsonl").read_bytes(), (job.run_dir / "final.safetensors").read_bytes()


def test_a_run_that_is_stopped_in_every_phase_ends_in_the_bytes_of_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = job_in(tmp_path / "whole")
    listener = Stopping(None)
    run_job(whole, InProcessBackend(), listener=listener)
    job = job_in(tmp_path)
    for phase in PHASES:
        stopping = Stopping(phase)
        with pytest.raises(Stopped, match="the test has seen enough: what is committed is kept"):
            run_job(job, InProcessBackend(), listener=stopping)
        assert stopping.stopped() < 5, phase
        kinds = [line.get("phase") for line in read_journal(job.run_dir / "journal.jsonl") if line["kind"] == "begin"]
        assert kinds == list(PHASES[: PHASES.index(phase) + 1])
        attempts = Ledger(job.run_dir / "ledger", "run").rows()
        assert [row.exit_state for row in attempts if row.instance == phase][-1] == "interrupted", phase
    run_job(job, InProcessBackend())
    assert bytes_of(job) == bytes_of(whole)


def test_a_listener_hears_phases_iterations_and_epochs_in_order(tmp_path: Path) -> None:
    job, listener = job_in(tmp_path), Stopping(None)
    run_job(job, InProcessBackend(), listener=listener)
    begun = [event.phase for event in listener.heard if isinstance(event, PhaseBegun)]
    committed = [(event.phase, event.producer) for event in listener.heard if isinstance(event, PhaseCommitted)]
    assert begun == list(PHASES)
    assert committed == [(phase, "run") for phase in PHASES]
    made = [event.iteration for event in listener.heard if isinstance(event, IterationMade)]
    lines = [line for line in read_journal(job.run_dir / "journal.jsonl") if line["kind"] == "iteration"]
    assert made == [line["iteration"] for line in lines] == list(range(len(made)))
    epochs = [(event.phase, event.network, event.epoch) for event in listener.heard if isinstance(event, EpochEnded)]
    assert epochs == [
        ("pretrain", "full", 1),
        ("pretrain", "full", 2),
        ("warmup", "warmup", 1),
        ("finetune-slim", "slim", 1),
    ]
