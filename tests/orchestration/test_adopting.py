"""A run that adopts the search of another one: what it takes over, and what it refuses."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import RunCommand

from ekgsearch.storage.journal import read_journal


def content(line: dict[str, Any]) -> dict[str, Any]:
    """What a journal line records, without its place in the chain."""
    return {name: value for name, value in line.items() if name not in ("seq", "kind", "prev", "hash")}


@pytest.mark.slow
def test_an_adopted_search_ends_in_the_same_network_without_searching(
    reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    bank = os.path.relpath(reference / "bank")
    settings = ("--set", f"search_run={reference}", "--set", f"bank.uri={bank}")
    finished = ekgsearch("run", job_file, *settings)
    assert finished.returncode == 0, finished.stderr
    run = job_file.parent / "run"
    assert (run / "final.safetensors").read_bytes() == (reference / "final.safetensors").read_bytes()
    kinds, expected = ([line["kind"] for line in read_journal(folder / "journal.jsonl")] for folder in (run, reference))
    assert kinds == [expected[0], "adopted", *expected[1:]]
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    is_shared = hours.exit_state == "shared"
    assert set(hours[is_shared].phase) == {"pretrain", "warmup", "search"}
    assert set(hours[~is_shared].phase) == {"finetune", "evaluate"}, "the bank is there already"
    assert ekgsearch("run", job_file, *settings).returncode == 0


@pytest.mark.slow
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
