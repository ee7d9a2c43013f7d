"""Distributed training through Ray Train: a killed process costs time, never the result."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from command_line import JOB, command, environment

from ekgsearch.storage.journal import read_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = [
    "finetune.workers=2",
    "finetune.epochs=4",
    "finetune.objective=byol",
    "finetune.head_width=16",
    "finetune.ema_decay=0.9",
    "finetune.checkpoint_every_steps=8",
    "pretrain.epochs=1",
    "search.reduction=0.1",
]


def start(folder: Path) -> subprocess.Popen[str]:
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    arguments = [part for setting in SETTINGS for part in ("--set", setting)]
    return subprocess.Popen(
        command("run", folder / "job.yaml", *arguments), env=environment(), stderr=subprocess.PIPE, text=True
    )


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found += [int(folder.name), *children(int(folder.name))]
    return found


def training_processes(pid: int) -> list[int]:
    """Processes of Ray Train below a driver."""
    found = []
    for child in children(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in title:
            found.append(child)
    return found


def position(reached: str) -> tuple[int, int]:
    """Epochs and further steps of the newest checkpoint that counts."""
    task, epoch, step = reached.split()
    assert task == "slim"
    return int(epoch), int(step)


def test_a_killed_training_process_is_replaced_and_the_weights_are_the_same(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    _, errors = whole.communicate(timeout=500)
    assert whole.returncode == 0, errors

    broken = start(tmp_path / "broken")
    broken_run = tmp_path / "broken" / "run"
    checkpoints = broken_run / "training" / "ray"
    deadline = time.monotonic() + 400
    seen: set[str] = set()
    while time.monotonic() < deadline and broken.poll() is None and len(seen) < 5:  # three in each epoch
        seen |= {path.name for path in checkpoints.glob("checkpoint_*")}
        time.sleep(0.02)
    victims = training_processes(broken.pid)
    assert len(victims) == 2
    reached = position((broken_run / "training" / "reached.txt").read_text())
    assert reached >= (1, 0)
    os.kill(victims[1], signal.SIGKILL)
    _, errors = broken.communicate(timeout=500)
    assert broken.returncode == 0, errors
    _, _, after = (broken_run / "log.txt").read_text().partition("training processes died; starting others (1)")
    continued = re.findall(r"continuing after epoch (\d+)(?: and (\d+) steps)? of 4 from", after)
    assert len(continued) == 1
    assert tuple(int(number or 0) for number in continued[0]) >= reached  # no step before that is done again

    lines = {}
    for name in ("whole", "broken"):
        journal = read_journal(tmp_path / name / "run" / "journal.jsonl")
        lines[name] = next(line for line in journal if line["kind"] == "finetune")
        epochs = pd.read_parquet(tmp_path / name / "run" / "tables" / "epochs.parquet")
        assert epochs[epochs.phase == "finetune"].epoch.tolist() == list(range(1, 5))
    assert lines["broken"]["sha256"] == lines["whole"]["sha256"]
