"""Two processes that train together end where one process ends."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ekgsearch.storage.tensors import load_tensors

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("ddp_worker.py")
TOLERANCE = 1e-4
"""Float32 sums are taken in another order; over 12 steps that stays three digits below any effect."""


def load_worker() -> ModuleType:
    """Import the script of the workers."""
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Run every scenario here and in two processes, side by side; folders of results by number of processes."""
    found = {size: tmp_path_factory.mktemp(f"world-{size}") for size in (1, 2)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), "2", found[2]],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        alone = load_worker()
        with torch.random.fork_rng():
            alone.main(0, 1, found[1])
        for worker in workers:
            _, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    return found


def rows(folder: Path, name: str, rank: int = 0) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return found


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_tensors(folder / f"{name}-{rank}.safetensors")[0]


@pytest.mark.parametrize("objective", ["plain", "single", "ekg"])
def test_two_processes_train_a_network_without_normalisation_like_one(folders: dict[int, Path], objective: str) -> None:
    alone, together = weights(folders[1], objective), weights(folders[2], objective)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=TOLERANCE, atol=TOLERANCE)
    for one, two in zip(rows(folders[1], objective), rows(folders[2], objective), strict=True):
        assert two == pytest.approx(one, rel=TOLERANCE)


def test_two_processes_use_the_same_teachers_as_one(folders: dict[int, Path]) -> None:
    used = {size: [row["num_teachers_used"] for row in rows(folder, "ekg")] for size, folder in folders.items()}
    assert used[2] == used[1]
    assert len(set(used[1])) > 1, "the number of teachers never changes, so this test shows nothing"


@pytest.mark.parametrize("name", ["plain", "single", "ekg", "norm"])
def test_all_processes_end_with_the_same_network_and_the_same_numbers(folders: dict[int, Path], name: str) -> None:
    first, second = weights(folders[2], name, 0), weights(folders[2], name, 1)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert rows(folders[2], name, 0) == rows(folders[2], name, 1)


@pytest.mark.parametrize("size", [1, 2])
def test_an_interrupted_training_continues_to_the_same_bits(folders: dict[int, Path], size: int) -> None:
    whole, resumed = weights(folders[size], "norm"), weights(folders[size], "resumed")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert rows(folders[size], "norm") == rows(folders[size], "resumed")


def test_a_loss_that_is_no_number_on_one_process_stops_all(folders: dict[int, Path]) -> None:
    for rank in (0, 1):
        message = (folders[2] / f"error-{rank}.txt").read_text()
        assert message.startswith("epoch 1, step 2: expected a finite loss, found none on rank 1 of 2")
