"""The threads of the process that runs a job: as many as the job says, and recorded as a number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import JOB

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job, job_schema
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline import train
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.environment import num_cores
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.workers.backend import InProcessBackend


def job_with(folder: Path, *settings: str) -> Job:
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    return load_job(folder / "job.yaml", settings)


@pytest.mark.parametrize(
    ("variable", "expected"), [("3", 3), ("5,2", 5), ("", None), ("0", None), ("many", None), (None, None)]
)
def test_they_are_those_of_the_environment_else_the_cores(
    variable: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    for job in (job_with(tmp_path), job_with(tmp_path, "cluster.threads=null")):
        assert job.cluster.threads == job.identity()["cluster"]["threads"] == (expected or num_cores())
    assert job_with(tmp_path, "cluster.threads=7").cluster.threads == 7
    with pytest.raises(JobError, match=r"cluster\.threads = 0: .*greater than or equal to 1"):
        job_with(tmp_path, "cluster.threads=0")
    assert {"type": "null"} in job_schema()["$defs"]["ClusterSection"]["properties"]["threads"]["anyOf"]


def test_they_identify_a_run_as_those_of_the_workers_do(tmp_path: Path) -> None:
    settings = ([], ["cluster.threads=7"], ["cluster.threads_per_worker=7"], ["cluster.search_workers=7"])
    hashes = [job_with(tmp_path, *given).sha256 for given in settings]
    assert (len(set(hashes)), hashes[3]) == (3, hashes[0])


def test_a_run_trains_with_them_and_puts_back_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ekgsearch")
    job = job_with(tmp_path, "cluster.threads=3", "cluster.device=cpu")
    job.run_dir.mkdir()
    seen = []

    def stop(spec: Any, _: Path, **__: Any) -> None:
        seen.append((spec.threads, torch.get_num_threads()))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_all", stop)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, InProcessBackend())
    assert seen == [(3, 3)]
    assert torch.get_num_threads() == 1
    assert "this process computes with 3 threads (cluster.threads)" in caplog.text
    (attempt,) = Ledger(job.run_dir / "ledger", "run").rows()
    assert (attempt.phase, attempt.num_devices) == ("pretrain", 3)
    assert "threads: 3\n" in (job.run_dir / "job.yaml").read_text()
