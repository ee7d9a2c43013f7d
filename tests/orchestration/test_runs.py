"""Whole runs through the command line: the same journal however the work is spread, stopped or killed."""

import json
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import JOB, RunCommand, command, environment

from ekgsearch.artefact.file import load_file, read_file
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.sealed import read_sealed
from ekgsearch.workers.backend import InProcessBackend

TABLES = ("summary", "iterations", "candidates", "subnetworks", "epochs", "device_hours")


def journal_bytes(run: Path) -> bytes:
    return (run / "journal.jsonl").read_bytes()


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
    network = load_file(reference / "final.safetensors")
    described = read_file(reference / "final.safetensors")[1]
    assert described.contents == "slim network, fine-tuned"
    assert described.classes == tuple("0123456789")
    assert len(described.mean) == len(described.std) == 3
    assert read_file(reference / "initial.safetensors")[1].contents == "unpruned network, fresh weights, untrained"
    assert "before fine-tuning" in read_file(reference / "slim.safetensors")[1].contents
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


def test_latencies_that_are_lost_or_damaged_are_measured_again(reference: Path, job_file: Path) -> None:
    run = job_file.parent / "run"
    shutil.copytree(reference, run)
    path = run / "measurements.json"
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])):
        damage(path)
        run_job(load_job(job_file), InProcessBackend())
        summary = pd.read_parquet(run / "tables" / "summary.parquet").iloc[0]
        measured = read_sealed(path)["slim"]
        assert summary.slim_latency_ms == measured["slim_batch1_ms"] > 0
        for ending, batch in (("", 1), ("_batch64", 64)):
            for column, name in (("ratio", "ratio"), ("ratio_low", "ratio_low"), ("ratio_high", "ratio_high")):
                assert summary[f"latency_{column}{ending}"] == measured[f"{name}_batch{batch}"] > 0
            assert summary[f"latency_noise{ending}"] == measured[f"noise_batch{batch}"] >= 1
        assert summary.finetune_epochs == 2
    assert journal_bytes(run) == journal_bytes(reference)


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


@pytest.mark.slow
def test_a_finished_run_is_not_relabelled_as_another_job(reference: Path, ekgsearch: RunCommand) -> None:
    before, table = journal_bytes(reference), (reference / "tables" / "summary.parquet").read_bytes()
    settings = ("--set", "seed=7", "--set", "finetune.objective=plain")
    for flag in ((), ("--resume",)):
        refused = ekgsearch("run", reference.parent / "job.yaml", *settings, *flag)
        assert refused.returncode == 2
        assert 'belongs to another run: finetune.objective was "ekg", is "plain"; seed was 1, is 7' in refused.stderr
        again = "would have to be done again: pretrain, warmup, search, finetune-slim, evaluate. Put it back"
        assert again in refused.stderr
        assert "Traceback" not in refused.stderr
    assert journal_bytes(reference) == before
    assert (reference / "tables" / "summary.parquet").read_bytes() == table


@pytest.mark.slow
def test_another_version_of_torch_is_noticed_and_the_flag_continues(
    reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    run = job_file.parent / "run"
    shutil.copytree(reference, run)
    shutil.copy(reference.parent / "job.yaml", job_file)
    found = json.loads((run / "provenance.json").read_text())
    found["packages"]["torch"] = "1.0"
    (run / "provenance.json").write_text(json.dumps(found))
    settings = ("--set", f"output={run}")
    refused = ekgsearch("run", job_file, *settings)
    assert refused.returncode == 2
    assert 'torch was "1.0"' in refused.stderr
    finished = ekgsearch("run", job_file, *settings, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert 'continuing although torch was "1.0"' in finished.stderr


@pytest.mark.ray
@pytest.mark.parametrize("workers", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 4))])
def test_the_journal_does_not_depend_on_the_number_of_workers(
    workers: int, reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    finished = ekgsearch("run", job_file, "--set", f"cluster.search_workers={workers}")
    assert finished.returncode == 0, finished.stderr
    assert journal_bytes(job_file.parent / "run") == journal_bytes(reference)
    hours = pd.read_parquet(job_file.parent / "run" / "tables" / "device_hours.parquet").set_index("phase")
    assert hours.num_devices["search"] == min(workers, 3)  # batches
    assert hours.num_devices["bank"] == workers


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
    [
        (signal.SIGINT, 130, 0),
        pytest.param(signal.SIGTERM, 75, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 75, 2, marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
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
    known = {"run", "begin", "pretrain", "warmup", "iteration", "search", "bank", "finetune", "evaluate", "done"}
    lines = read_journal(reference / "journal.jsonl")
    assert {line["kind"] for line in lines} == known
    words = {word for line in lines for name in line for word in name.split("_")}
    assert words.isdisjoint({"time", "timestamp", "date", "seconds", "host", "hostname", "machine"})
