"""A run in a process that does other things as well: what it leaves behind, and what it cannot share."""

import logging
import os
import random
import signal
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import JOB, command, environment

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.orchestration.launch import launch
from ekgsearch.pipeline import run as run_module
from ekgsearch.pipeline.run import run_job
from ekgsearch.workers.backend import InProcessBackend

SMALL = ("finetune.objective=plain", "finetune.epochs=1", "pretrain.epochs=1", "search.reduction=0.1")


def job_in(folder: Path, *settings: str) -> Job:
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    return load_job(folder / "job.yaml", (*SMALL, "cluster.threads=1", *settings))


def process_state() -> dict[str, Any]:
    logger = logging.getLogger("ekgsearch")
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "logging": (logger.level, list(logger.handlers), logger.propagate, list(logging.getLogger().handlers)),
        "threads": torch.get_num_threads(),
        "generators": (random.random(), np.random.rand(), torch.rand(3).tolist()),  # noqa: NPY002
        "switches": (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.get_default_dtype()),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
    }


def seed_all() -> None:
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)


def bytes_of(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in ("journal.jsonl", "final.safetensors", "slim.safetensors")}


def in_thread(job: Job) -> None:
    """Run a job outside the main thread."""
    finished: Future[None] = Future()

    def work() -> None:
        try:
            launch(job, continue_anyway=False)
            finished.set_result(None)
        except BaseException as error:
            finished.set_exception(error)

    threading.Thread(target=work).start()
    finished.result()


@pytest.mark.slow
def test_runs_in_a_thread_leave_the_process_as_it_was_and_give_the_bits_of_processes_of_their_own(
    tmp_path: Path,
) -> None:
    torch.backends.cudnn.deterministic = False
    seed_all()
    before = process_state()
    seed_all()
    for name, seed in (("first", 1), ("second", 2)):
        in_thread(job_in(tmp_path / name, f"seed={seed}"))
    assert process_state() == before
    for name, seed in (("third", 1), ("fourth", 2)):
        job = job_in(tmp_path / name, f"seed={seed}")
        options = [part for one in (*SMALL, "cluster.threads=1", f"seed={seed}") for part in ("--set", one)]
        done = subprocess.run(
            command("run", tmp_path / name / "job.yaml", *options),
            env=environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        alike = {"third": "first", "fourth": "second"}[name]
        assert bytes_of(job.run_dir) == bytes_of(tmp_path / alike / "run")


def test_a_second_run_at_the_same_time_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = job_in(tmp_path / "first"), job_in(tmp_path / "second")
    for job in (first, second):
        job.run_dir.mkdir()
    refused = []

    def meanwhile(*_: object, **__: object) -> None:
        with pytest.raises(JobError, match="another run is under way in this process") as error:
            run_job(second, InProcessBackend())
        refused.append(error)

    monkeypatch.setattr(run_module, "run_phases", meanwhile)
    monkeypatch.setattr(run_module, "measure_latencies", lambda _: None)
    run_job(first, InProcessBackend())
    assert refused
    assert not (second.run_dir / "journal.jsonl").exists()
