"""Which kind of device does which part of a run, and that a run which is continued keeps it."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import JOB
from paper_run import paper_run

from ekgsearch.errors import JobError, ResumeError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.devices import Devices, find_devices
from ekgsearch.pipeline.setup import set_up
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.storage.journal import Journal

ADDRESS = "cluster.address=10.0.0.1:6379"
WORKERS = "cluster.search_workers=2"


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(output=tmp_path / "run"))
    return path


def found(path: Path, *settings: str, here: bool, there: bool | None, monkeypatch: pytest.MonkeyPatch) -> Devices:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    return find_devices(load_job(path, settings), there)


@pytest.mark.parametrize(
    ("settings", "here", "there", "expected"),
    [
        ((), False, None, "cpu cpu cpu"),
        ((), True, None, "cuda cuda cuda"),
        (("cluster.device=cpu", WORKERS), True, None, "cpu cpu cpu"),
        ((ADDRESS, WORKERS), False, True, "cpu cuda cuda"),
        ((ADDRESS, WORKERS, "cluster.device=cuda"), False, True, "cpu cuda cuda"),
        ((ADDRESS, WORKERS, "cluster.device=cuda"), False, None, "cpu cuda cuda"),
        ((ADDRESS, WORKERS, "cluster.device=cpu"), True, True, "cpu cpu cpu"),
        ((ADDRESS, WORKERS), True, False, "cuda cpu cpu"),
        ((ADDRESS,), False, True, "cpu cpu cuda"),
        ((ADDRESS, WORKERS), False, None, "cpu cpu cpu"),
    ],
)
def test_workers_of_a_cluster_use_its_devices_and_the_driver_its_own(
    settings: tuple[str, ...],
    here: bool,
    there: bool | None,
    expected: str,
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices = found(job_file, *settings, here=here, there=there, monkeypatch=monkeypatch)
    assert devices == Devices(*expected.split())


def test_a_driver_without_a_gpu_says_what_it_does_itself(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ekgsearch")
    devices = found(job_file, ADDRESS, WORKERS, here=False, there=True, monkeypatch=monkeypatch)
    assert (
        "search on cuda, fine-tuning on cuda, evaluation and training before the search here on the cpu" in caplog.text
    )
    assert (devices.name(devices.search), devices.name(devices.here)) == ("cuda", "cpu")
    caplog.clear()
    found(job_file, ADDRESS, here=False, there=True, monkeypatch=monkeypatch)
    assert "cluster.search_workers = 0 searches in this process" in caplog.text


@pytest.mark.parametrize(
    ("settings", "there", "message"),
    [
        (("cluster.device=cuda",), None, "torch finds no CUDA device on this machine"),
        (("cluster.device=cuda", ADDRESS, WORKERS), False, r"no node of the cluster at 10\.0\.0\.1:6379 has a GPU"),
        (("cluster.device=cuda", ADDRESS), True, "set cluster.search_workers to the number of GPUs"),
        (("search.precision=tf32", ADDRESS), True, "only GPUs multiply in TF32"),
    ],
)
def test_a_device_that_is_not_where_the_work_is_done_is_refused(
    settings: tuple[str, ...], there: bool | None, message: str, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match=message):
        found(job_file, *settings, here=False, there=there, monkeypatch=monkeypatch)


def test_a_run_is_not_continued_on_another_kind_of_device_unless_it_must(
    job_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = set_up(load_job(job_file, ["cluster.device=cpu"]))
    moved = replace(setup, devices=Devices(here="cpu", search="cuda", finetune="cpu"))
    run = setup.job.run_dir
    run.mkdir()
    with Journal.open(setup.job.run_dir / "journal.jsonl") as journal:
        start_or_check(paper_run(setup, run, journal), continue_anyway=False)
        start_or_check(paper_run(setup, run, journal), continue_anyway=False)
        with pytest.raises(ResumeError, match="search_device was cpu, is cuda"):
            start_or_check(paper_run(moved, run, journal), continue_anyway=False)
        start_or_check(paper_run(moved, run, journal), continue_anyway=True)
        assert len(journal.lines) == 1
    assert "continuing although search_device was cpu, is cuda" in caplog.text
