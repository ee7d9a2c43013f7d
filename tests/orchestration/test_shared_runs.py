"""Whole runs with one phase store: a smaller reduction after a larger one, at the same moment, with kills, in a bucket.

About six minutes on two cores.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from command_line import RunCommand, command, environment
from object_storage import FaultProxy

from ekgsearch.storage.journal import read_journal

PHASES = ("pretrain", "warmup", "search", "bank", "finetune-slim", "evaluate")
FILES = ("journal.jsonl", "final.safetensors", "slim.safetensors")

pytestmark = pytest.mark.slow


def arguments(job_file: Path, name: str, store: str | None, reduction: float) -> list[str]:
    fields = [f"output={job_file.parent / name}", f"search.reduction={reduction}"]
    fields += [] if store is None else [f"phases.uri={store}"]
    return [str(job_file), *(part for field in fields for part in ("--set", field))]


def started(job_file: Path, name: str, store: str, reduction: float) -> subprocess.Popen[bytes]:
    given = command("run", *arguments(job_file, name, store, reduction))
    return subprocess.Popen(given, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def bytes_of(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FILES]


def rows_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "tables" / "device_hours.parquet")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, ekgsearch: RunCommand) -> dict[float, list[bytes]]:
    """Journal and networks of both runs, each by itself."""
    from command_line import JOB

    folder = tmp_path_factory.mktemp("alone")
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    found = {}
    for reduction in (0.3, 0.2):
        finished = ekgsearch("run", *arguments(folder / "job.yaml", str(reduction), None, reduction))
        assert finished.returncode == 0, finished.stderr
        found[reduction] = bytes_of(folder / str(reduction))
    return found


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    server: FaultProxy = request.getfixturevalue("s3_server")
    return server.direct_uri


def test_two_reductions_at_the_same_moment_compute_what_they_share_once(
    store: str, job_file: Path, alone: dict[float, list[bytes]]
) -> None:
    runs = {reduction: started(job_file, str(reduction), store, reduction) for reduction in (0.3, 0.2)}
    for run in runs.values():
        assert run.wait(timeout=400) == 0, run.stderr.read().decode()
    tables = [rows_of(job_file.parent / str(reduction)) for reduction in runs]
    computed = Counter(name for table in tables for name in table[table.exit_state == "finished"].instance)
    assert computed["pretrain"] == computed["warmup"] == 1
    shared = [name for table in tables for name in table[table.exit_state == "shared"].instance]
    assert {"pretrain", "warmup", "search"} <= set(shared)
    for reduction in runs:
        assert bytes_of(job_file.parent / str(reduction)) == alone[reduction], reduction


def test_a_run_that_is_killed_in_every_phase_shares_what_it_had_finished(
    store: str, job_file: Path, alone: dict[float, list[bytes]], ekgsearch: RunCommand
) -> None:
    chance = random.Random(7)
    journal = job_file.parent / "0.3" / "journal.jsonl"
    for phase in PHASES:
        run = started(job_file, "0.3", store, 0.3)
        deadline = time.monotonic() + 200
        while not (journal.exists() and _has_begun(journal, phase)):
            assert run.poll() is None, run.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    small = ekgsearch("run", *arguments(job_file, "0.2", store, 0.2))
    assert small.returncode == 0, small.stderr
    large = ekgsearch("run", *arguments(job_file, "0.3", store, 0.3))
    assert large.returncode == 0, large.stderr
    for reduction in (0.3, 0.2):
        assert bytes_of(job_file.parent / str(reduction)) == alone[reduction], reduction
    table = rows_of(job_file.parent / "0.2")
    shared = table[table.exit_state == "shared"]
    assert {"pretrain", "warmup", "search"} <= set(shared.instance)
    assert set(shared.producer) == {"0.3"}
    assert (shared.device_hours == 0).all()


def _has_begun(journal: Path, phase: str) -> bool:
    return any(line["kind"] == "begin" and line["phase"] == phase for line in read_journal(journal))
