"""Fresh searches decide as the committed ones: the quick start, and the first iterations of ResNet-56 on CIFAR-10."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from command_line import command, environment

from ekgsearch.storage.journal import read_journal

ROOT = Path(__file__).parents[2]
RELATIVE = 1e-6
"""Largest deviation of a loss or score, as a share of its value."""

PATIENCE_S = 900.0


def fresh_iterations(run: Path, job: Path, settings: Sequence[str], is_enough: Callable[[list], bool]) -> list:
    """Run a job until its journal holds enough iterations, then interrupt it; the lines of its iterations."""
    options = [part for setting in (f"output={run}", *settings) for part in ("--set", setting)]
    driver = subprocess.Popen(command("run", job, *options), env=environment(), stderr=subprocess.PIPE)
    deadline, lines = time.monotonic() + PATIENCE_S, []
    try:
        while not is_enough(lines):
            assert driver.poll() is None, driver.stderr.read().decode()
            assert time.monotonic() < deadline, "the search did not come as far in time"
            time.sleep(0.5)
            if (run / "journal.jsonl").exists():
                lines = read_journal(run / "journal.jsonl")
    finally:
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    return [line for line in lines if line["kind"] == "iteration"]


def candidates_of(lines: list) -> pd.DataFrame:
    """One row per candidate, with the columns of the table of candidates that say what was decided on."""
    rows = [
        (line["iteration"], one["group"], one["num_kept"], one["loss"], one["score"], one["group"] == line["group"])
        for line in lines
        for one in line["candidates"]
    ]
    return pd.DataFrame(rows, columns=["iteration", "channel_group", "num_kept", "loss", "score", "won"])


def assert_as_committed(name: str, lines: list) -> None:
    """Compare iterations with the committed tables of a run: decisions exactly, losses and scores to a tolerance."""
    last = lines[-1]["iteration"]
    table = {
        kind: pd.read_parquet(ROOT / "results" / f"{name}.{kind}.parquet") for kind in ("iterations", "candidates")
    }
    expected = {kind: rows[rows.iteration <= last].reset_index(drop=True) for kind, rows in table.items()}
    found = candidates_of(lines)
    pd.testing.assert_frame_equal(found, expected["candidates"][found.columns], rtol=RELATIVE, atol=0)
    for column, key in {"channel_group": "group", "kept_macs": "macs", "kept_params": "params"}.items():
        assert [line[key] for line in lines] == expected["iterations"][column].tolist(), column
    for column in ("loss", "score"):
        assert [line[column] for line in lines] == pytest.approx(expected["iterations"][column].tolist(), rel=RELATIVE)


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_S)
def test_the_quick_start_decides_as_committed(tmp_path: Path) -> None:
    committed = [
        line for line in read_journal(ROOT / "results/quickstart.journal.jsonl") if line["kind"] == "iteration"
    ]
    last = committed[-1]["iteration"]
    job = ROOT / "jobs/quickstart.yaml"
    lines = fresh_iterations(
        tmp_path / "run", job, [], lambda lines: any(line.get("iteration") == last for line in lines)
    )
    assert_as_committed("quickstart", lines)
    assert [(line["kept"], line["subnetwork"]) for line in lines] == [
        (line["kept"], line["subnetwork"]) for line in committed
    ]


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE_S)
def test_ten_iterations_of_resnet56_decide_as_committed(data_dir: Path, tmp_path: Path) -> None:
    job = ROOT / "jobs/ekg_resnet56_cifar10_cpu.yaml"
    lines = fresh_iterations(
        tmp_path / "run", job, [], lambda lines: any(line.get("iteration") == 10 for line in lines)
    )
    assert os.environ["EKGSEARCH_DATA"]
    assert_as_committed("ekg_resnet56_cifar10_cpu", [line for line in lines if line["iteration"] <= 10])
