"""Two and four processes that train together end where one process ends."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ekgsearch.finetune.batches import open_batches
from ekgsearch.finetune.world import World
from ekgsearch.maths.distillation import ekg_loss
from ekgsearch.storage.tensors import load_tensors

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("ddp_worker.py")
TOLERANCE = 1e-4
"""Float32 sums are taken in another order; over 12 steps that stays three digits below any effect."""

OBJECTIVES = ["plain", "single", "ekg", "contrastive", "byol"]
SHARED = [f"shared-{name}" for name in (*OBJECTIVES, "accumulated", "queue")]


def load_worker() -> ModuleType:
    """Import the script of the workers."""
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def training_together(folders: dict[int, Path], sizes: Sequence[int], *arguments: str) -> Iterator[None]:
    """Run the script in so many processes for each size; they have ended well at the end of the context."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), str(size), folders[size], *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for size in sizes
        for rank in range(size)
    ]
    try:
        yield
        for worker in workers:
            _, errors = worker.communicate(timeout=240)
            assert worker.returncode == 0, errors[-3000:]
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Run every scenario here and in 2 and 4 processes, side by side; folders of results by number of processes."""
    found = {size: tmp_path_factory.mktemp(f"world-{size}") for size in (1, 2, 4)}
    with training_together(found, (2, 4)), torch.random.fork_rng():
        load_worker().main(0, 1, found[1])
    return found


def record(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return found


def rows(folder: Path, name: str, rank: int = 0) -> list[dict[str, float]]:
    found: list[dict[str, float]] = record(folder, name, rank)["epochs"]
    return found


def step_losses(folder: Path, name: str, size: int) -> list[float]:
    """Loss of every step over all processes, which share each batch evenly."""
    parts = [[loss for _, _, loss in record(folder, name, rank)["steps"]] for rank in range(size)]
    return [sum(losses) / size for losses in zip(*parts, strict=True)]


def weights(folder: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_tensors(folder / f"{name}-{rank}.safetensors")[0]


@pytest.mark.parametrize("objective", ["plain", "single", "ekg", "reconstruction"])
def test_two_processes_train_a_network_without_normalisation_like_one(folders: dict[int, Path], objective: str) -> None:
    alone, together = weights(folders[1], objective), weights(folders[2], objective)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=TOLERANCE, atol=TOLERANCE)
    for one, two in zip(rows(folders[1], objective), rows(folders[2], objective), strict=True):
        assert two == pytest.approx(one, rel=TOLERANCE, nan_ok=True)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", SHARED)
def test_synchronised_norms_give_one_loss_sequence_for_any_number_of_processes(
    folders: dict[int, Path], name: str, size: int
) -> None:
    alone, together = step_losses(folders[1], name, 1), step_losses(folders[size], name, size)
    assert len(alone) == 6
    assert together == pytest.approx(alone, rel=TOLERANCE)
    for key, value in weights(folders[1], name).items():
        torch.testing.assert_close(weights(folders[size], name)[key], value, rtol=10 * TOLERANCE, atol=10 * TOLERANCE)


@pytest.mark.slow
def test_compiled_networks_with_synchronised_norms_train_to_the_same_losses(
    folders: dict[int, Path], tmp_path: Path
) -> None:
    with training_together({2: tmp_path}, (2,), "compiled"):
        pass
    for objective in ("ekg", "byol"):
        eager = step_losses(folders[1], f"shared-{objective}", 1)
        assert step_losses(tmp_path, f"compiled-{objective}", 2) == pytest.approx(eager, rel=TOLERANCE)


@pytest.mark.parametrize("size", [2, 4])
def test_a_synchronised_norm_is_that_of_one_process_on_the_whole_batch(folders: dict[int, Path], size: int) -> None:
    alone = weights(folders[1], "layer")
    ranks = [weights(folders[size], "layer", rank) for rank in range(size)]
    for name in ("output", "gradient", "running"):
        together = torch.cat([found[name] for found in ranks])
        torch.testing.assert_close(together, alone[name], rtol=TOLERANCE, atol=TOLERANCE)
    for name in ("0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"):
        for found in ranks:
            torch.testing.assert_close(found[name], alone[name], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("size", [2, 4])
def test_own_batch_statistics_are_those_of_each_share(folders: dict[int, Path], size: int) -> None:
    alone, together = step_losses(folders[1], "own", 1), step_losses(folders[size], "own", size)
    assert together == pytest.approx(losses_of_shares(size), rel=TOLERANCE)
    assert together[0] != pytest.approx(alone[0], rel=10 * TOLERANCE), "shares normalised apart differ from the batch"


def losses_of_shares(size: int) -> list[float]:
    """Train in one process on the scenario `own`, each share of a batch normalised apart, all else over the batch."""
    worker = load_worker()
    fixtures, config = worker.load_fixtures(), worker.EVEN
    data, bank = fixtures.make_data(), fixtures.make_bank()
    with torch.random.fork_rng():
        model = worker.network(normalised=True).train()
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    ranks = [open_batches(data, config, World(torch.device("cpu"), rank, size)).epoch(1) for rank in range(size)]
    losses = []
    for shares in zip(*ranks, strict=True):
        logits = torch.cat([model(share.views.flatten(0, 1)).view(*share.views.shape[:2], -1) for share in shares])
        labels, ids = (torch.cat([getattr(share, name) for share in shares]) for name in ("labels", "ids"))
        parts, _ = ekg_loss(logits, labels, bank.read(ids).logits, config.temperature, gate=config.teacher_gate)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
    return losses


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_uses_the_same_teachers(folders: dict[int, Path], size: int) -> None:
    names = [name for name in SHARED if name not in ("shared-plain", "shared-single")] + ["ekg"] * (size == 2)
    masks = set()
    for name in names:
        alone = record(folders[1], name)["teachers"]
        for rank in range(size):
            assert record(folders[size], name, rank)["teachers"] == alone, name
        masks |= {tuple(mask) for mask in alone}
    assert len(masks) > 1, "all teachers are used throughout, so this test shows nothing"


@pytest.mark.parametrize(
    ("size", "name"),
    [*((2, name) for name in ("plain", "single", "ekg", "reconstruction", "norm")), *((4, name) for name in SHARED)],
)
def test_all_processes_end_with_the_same_network_and_the_same_numbers(
    folders: dict[int, Path], name: str, size: int
) -> None:
    first = weights(folders[size], name, 0)
    for rank in range(1, size):
        other = weights(folders[size], name, rank)
        assert all(torch.equal(value, other[key]) for key, value in first.items())
        assert repr(rows(folders[size], name, 0)) == repr(rows(folders[size], name, rank))


@pytest.mark.parametrize("size", [1, 2])
def test_an_interrupted_training_continues_to_the_same_bits(folders: dict[int, Path], size: int) -> None:
    whole, resumed = weights(folders[size], "norm"), weights(folders[size], "resumed")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert repr(rows(folders[size], "norm")) == repr(rows(folders[size], "resumed"))


@pytest.mark.parametrize("size", [2, 4])
def test_a_loss_that_is_no_number_on_one_process_stops_all(folders: dict[int, Path], size: int) -> None:
    for rank in range(size):
        message = (folders[size] / f"error-{rank}.txt").read_text()
        assert message.startswith(f"epoch 1, step 2: expected a finite loss, found none on rank {size - 1} of {size}")
