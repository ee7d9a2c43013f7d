"""Whole runs through the command line: the same journal however the work is spread, stopped or killed."""

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import JOB, RunCommand, command, environment

from ekgsearch.errors import JobError, ResumeError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.adopt import ADOPTED_KINDS, adopt_search
from ekgsearch.pipeline.load import load_slim
from ekgsearch.storage.journal import Journal, read_journal

CHAIN = ("seq", "kind", "prev", "hash")
TABLES = ("summary", "iterations", "candidates", "subnetworks", "epochs", "device_hours")


def journal_bytes(run: Path) -> bytes:
    return (run / "journal.jsonl").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, ekgsearch: RunCommand) -> Path:
    """An uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    finished = ekgsearch("run", folder / "job.yaml")
    assert finished.returncode == 0, finished.stderr
    return folder / "run"


def test_a_run_leaves_everything_that_is_promised(reference: Path) -> None:
    for name in ("job.yaml", "provenance.json", "journal.jsonl", "subnetwork.json", "log.txt", "report.html"):
        assert (reference / name).stat().st_size > 0, name
    for table in TABLES:
        assert len(pd.read_parquet(reference / "tables" / f"{table}.parquet")), table
    assert list((reference / "plots").glob("*.png"))
    summary = pd.read_parquet(reference / "tables" / "summary.parquet").iloc[0]
    assert 0.3 <= summary.macs_reduction < 0.35
    assert summary.kept_macs < summary.full_macs
    hours = pd.read_parquet(reference / "tables" / "device_hours.parquet")
    assert set(hours.phase) == {"pretrain", "warmup", "search", "bank", "finetune", "evaluate"}
    assert (hours.exit_state == "finished").all()
    assert summary.device_hours == pytest.approx(hours.device_hours.sum())


def test_the_final_network_opens_from_one_file(reference: Path) -> None:
    network = load_slim(reference / "final.safetensors")
    summary = pd.read_parquet(reference / "tables" / "summary.parquet").iloc[0]
    assert sum(parameter.numel() for parameter in network.parameters()) == summary.kept_params
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_a_finished_run_is_not_done_again(reference: Path, ekgsearch: RunCommand) -> None:
    before = journal_bytes(reference)
    start = time.monotonic()
    again = ekgsearch("run", reference.parent / "job.yaml")
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stderr
    assert journal_bytes(reference) == before
    assert time.monotonic() - start < 60


def test_a_finished_exact_run_is_audited_without_a_trace_in_its_journal(reference: Path, ekgsearch: RunCommand) -> None:
    before = journal_bytes(reference)
    finished = ekgsearch("run", reference.parent / "job.yaml", "--audit", "100")
    assert finished.returncode == 0, finished.stderr
    assert journal_bytes(reference) == before
    rows = pd.read_parquet(reference / "tables" / "audit.parquet")
    num_decisions = sum(line["kind"] == "iteration" for line in read_journal(reference / "journal.jsonl")) - 1
    assert rows.iteration.tolist() == list(range(1, num_decisions + 1))
    assert rows.agrees.all()
    assert (rows.regret == 0).all()
    assert f"--audit 100, but the search made {num_decisions} decisions: auditing all of them" in finished.stderr
    assert f"Audit: {num_decisions} of {num_decisions} decisions (100.0 %)" in finished.stdout
    assert "Audit:" in (reference / "report.html").read_text()


def test_export_and_report_join_runs(reference: Path, ekgsearch: RunCommand, tmp_path: Path) -> None:
    out = tmp_path / "all.parquet"
    assert ekgsearch("export", reference, reference, "--out", out).returncode == 0
    assert len(pd.read_parquet(out)) == 2
    page = tmp_path / "page.html"
    finished = ekgsearch("report", reference, "--out", page)
    assert finished.returncode == 0, finished.stderr
    assert "<html" in page.read_text()


def test_a_run_directory_of_another_job_is_refused_and_the_flag_continues(
    reference: Path, ekgsearch: RunCommand
) -> None:
    before = journal_bytes(reference)
    refused = ekgsearch("run", reference.parent / "job.yaml", "--set", "finetune.epochs=3")
    assert refused.returncode == 2
    assert "belongs to another run: finetune.epochs was 2, is 3" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert journal_bytes(reference) == before


def test_an_adopted_search_ends_in_the_same_network_without_searching(
    reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    bank = os.path.relpath(reference / "bank")
    settings = ("--set", f"search_run={reference}", "--set", f"bank.uri={bank}")
    finished = ekgsearch("run", job_file, *settings)
    assert finished.returncode == 0, finished.stderr
    run = job_file.parent / "run"
    assert (run / "final.safetensors").read_bytes() == (reference / "final.safetensors").read_bytes()
    assert [line["kind"] for line in read_journal(run / "journal.jsonl")] == [
        line["kind"] for line in read_journal(reference / "journal.jsonl")
    ]
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    assert set(hours.phase) == {"bank", "finetune", "evaluate"}
    assert ekgsearch("run", job_file, *settings).returncode == 0


def test_an_adoption_that_was_killed_is_completed(reference: Path, job_file: Path) -> None:
    """The copy is cut off after any number of lines; another search in the run directory is refused."""
    adopted = [line for line in read_journal(reference / "journal.jsonl") if line["kind"] in ADOPTED_KINDS]
    job = load_job(job_file, [f"search_run={reference}"])
    job.run_dir.mkdir()
    for count in (0, 1, 3, len(adopted)):
        with Journal.open(job.run_dir / f"{count}.jsonl") as journal:
            first = read_journal(reference / "journal.jsonl")[0]
            for line in [first, *adopted[:count]]:
                journal.append(line["kind"], **{name: line[name] for name in line if name not in CHAIN})
            adopt_search(job, journal)
            assert [line["hash"] for line in journal.lines[1:]] == [line["hash"] for line in adopted]
    with Journal.open(job.run_dir / "other.jsonl") as journal:
        journal.append("run", **{name: first[name] for name in first if name not in CHAIN})
        journal.append("pretrain", file="initial.safetensors", sha256="0")
        with pytest.raises(ResumeError, match="has decisions that are not those of search_run"):
            adopt_search(job, journal)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.step=0.2", "search.step is 0.4 there and 0.2 here"),
        ("seed=2", "seed is 1 there and 2 here"),
        ("search_run=/nowhere", "found no /nowhere/journal.jsonl"),
    ],
)
def test_another_search_is_not_adopted(setting: str, message: str, reference: Path, job_file: Path) -> None:
    job = load_job(job_file, [f"search_run={reference}", setting])
    job.run_dir.mkdir()
    with Journal.open(job.run_dir / "journal.jsonl") as journal:
        first = read_journal(reference / "journal.jsonl")[0]
        journal.append("run", **{name: first[name] for name in first if name not in CHAIN})
        with pytest.raises(JobError, match=message):
            adopt_search(job, journal)


def test_a_run_of_two_threads_holds_two_cores(job_file: Path, ekgsearch: RunCommand, reference: Path) -> None:
    settings = ("--set", f"search_run={reference}", "--set", "cluster.threads_per_worker=2")
    finished = ekgsearch("run", job_file, *settings)
    assert finished.returncode == 0, finished.stderr
    hours = pd.read_parquet(job_file.parent / "run" / "tables" / "device_hours.parquet").set_index("phase")
    for phase in ("bank", "finetune"):
        row = hours.loc[phase]
        assert row.num_devices == 2, phase
        assert row.device_hours == pytest.approx(2 * row.wall_seconds / 3600)
        assert row.wall_seconds < row.busy_seconds <= 2 * row.wall_seconds


@pytest.mark.ray
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_journal_does_not_depend_on_the_number_of_workers(
    workers: int, reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    finished = ekgsearch("run", job_file, "--set", f"cluster.search_workers={workers}")
    assert finished.returncode == 0, finished.stderr
    assert journal_bytes(job_file.parent / "run") == journal_bytes(reference)


def test_the_journal_survives_kills_of_the_driver(reference: Path, job_file: Path, ekgsearch: RunCommand) -> None:
    expected = journal_bytes(reference)
    run = job_file.parent / "run"
    generator = random.Random(0)
    num_iterations = sum(line["kind"] == "iteration" for line in read_journal(reference / "journal.jsonl"))
    for after_lines in sorted(generator.sample(range(3, 3 + num_iterations), 3)):
        kill_after(run, job_file, after_lines)
        whole_lines = journal_bytes(run).rpartition(b"\n")[0]
        assert whole_lines
        assert expected.startswith(whole_lines)
    finished = ekgsearch("run", job_file)
    assert finished.returncode == 0, finished.stderr
    assert journal_bytes(run) == expected
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    died = hours[hours.exit_state == "died"]
    assert len(died) >= 1
    assert (died.wall_seconds >= 0).all()


@pytest.mark.ray
@pytest.mark.slow
def test_drivers_killed_at_random_with_another_worker_count_each_time(tmp_path: Path, ekgsearch: RunCommand) -> None:
    """Kills of the driver at any moment of the run, Ray's start included; 0 to 8 workers take turns."""
    for name in ("whole", "killed"):
        (tmp_path / f"{name}.yaml").write_text(JOB.format(output=tmp_path / name))
    batches = ("--set", "search.batch_size=12")
    assert ekgsearch("run", tmp_path / "whole.yaml", *batches).returncode == 0
    expected = journal_bytes(tmp_path / "whole")
    generator = random.Random(5)
    killed = 0
    for workers in (2, 4, 0, 8, 1, 2, 4, 8):
        arguments = (*batches, "--set", f"cluster.search_workers={workers}", "--set", "cluster.cpus_per_worker=0.25")
        process = subprocess.Popen(
            command("run", tmp_path / "killed.yaml", *arguments), env=environment(), stderr=subprocess.DEVNULL
        )
        try:
            process.wait(generator.uniform(4, 25))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        if (tmp_path / "killed" / "journal.jsonl").exists():
            assert expected.startswith(journal_bytes(tmp_path / "killed").rpartition(b"\n")[0])
    finished = ekgsearch("run", tmp_path / "killed.yaml", *batches, "--set", "cluster.search_workers=2")
    assert finished.returncode == 0, finished.stderr
    assert journal_bytes(tmp_path / "killed") == expected
    assert killed >= 3


def kill_after(run: Path, job_file: Path, lines: int) -> None:
    """Start the run and SIGKILL it as soon as its journal has so many lines."""
    process = subprocess.Popen(command("run", job_file), env=environment(), stderr=subprocess.DEVNULL)
    journal = run / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("sent", "status", "workers"),
    [(signal.SIGINT, 130, 0), (signal.SIGTERM, 75, 0), pytest.param(signal.SIGTERM, 75, 2, marks=pytest.mark.ray)],
)
def test_a_stopped_run_says_so_and_continues(
    sent: signal.Signals, status: int, workers: int, reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    run = job_file.parent / "run"
    arguments = ("run", job_file, "--set", f"cluster.search_workers={workers}")
    process = subprocess.Popen(command(*arguments), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "journal.jsonl").exists() and b'"iteration"' in journal_bytes(run):
            break
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status, errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    finished = ekgsearch("run", job_file)
    assert finished.returncode == 0, finished.stderr
    assert journal_bytes(run) == journal_bytes(reference)
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    assert "interrupted" in set(hours.exit_state)


def test_two_drivers_on_one_run_directory_are_refused(job_file: Path, ekgsearch: RunCommand) -> None:
    first = subprocess.Popen(command("run", job_file), env=environment(), stderr=subprocess.DEVNULL)
    try:
        journal = job_file.parent / "run" / "journal.jsonl"
        while not (journal.exists() and journal.stat().st_size):
            time.sleep(0.05)
        second = ekgsearch("run", job_file)
        assert second.returncode == 2
        assert str(first.pid) in second.stderr
    finally:
        first.kill()
        first.wait()


def test_the_journal_has_no_time_stamps_or_host_names(reference: Path) -> None:
    assert socket.gethostname() not in journal_bytes(reference).decode()
    known = {"run", "pretrain", "warmup", "iteration", "search", "bank", "finetune", "evaluate", "done"}
    lines = read_journal(reference / "journal.jsonl")
    assert {line["kind"] for line in lines} == known
    words = {word for line in lines for name in line for word in name.split("_")}
    assert words.isdisjoint({"time", "timestamp", "date", "seconds", "host", "hostname", "machine"})
