"""The benchmark of the objectives runs each of them as the training loop does, in one process or in two."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bank.row_file import RowFile
from ekgsearch.bench import distillation
from ekgsearch.bench.distillation import Settings, run
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.state import TrainState
from ekgsearch.finetune.world import World


def small(**changes: Any) -> Settings:
    fields = {"bench": "distillation", "net": "resnet20", "image_size": 8, "batch_size": 8, "steps": 1, "pairs": 1}
    return Settings(**{**fields, **changes})


def test_the_rows_of_every_step_come_from_the_file_of_a_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    gather = RowFile.gather

    def watched(file: RowFile, positions, **options) -> Tensor:
        gathered.append(len(positions))
        return gather(file, positions, **options)

    monkeypatch.setattr(RowFile, "gather", watched)
    list(run(small(steps=2)))
    assert gathered == [8] * 4  # one unmeasured call, one pair


@pytest.mark.parametrize("processes", [1, 2])
def test_every_objective_is_compared_with_plain_steps(processes: int) -> None:
    found = list(run(small(processes=processes, objectives=("single", "ekg", "byol"), pairs=3)))
    ratios = [(measurement.case, measurement.quantity) for measurement in found if measurement.unit == "x"]
    assert ratios == [
        (case, f"{clock} time of a step")
        for case in (
            "plain against itself",
            "single against plain, two views",
            "ekg against plain, two views",
            "byol against plain, two views",
        )
        for clock in ("process", "wall")
    ]
    times = [measurement.case for measurement in found if measurement.unit == "ms"]
    assert times == [case for case in ("plain", "single", "ekg", "byol") for _ in range(2)]
    assert all(measurement.repeats == 3 and measurement.low > 0 for measurement in found)


def test_two_processes_share_every_batch_and_sum_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[int, ...]] = set()
    sums: list[int] = []
    step, add = distillation.train_step, World.sum

    def watched(state: TrainState, batch: Batch, *given: Any, **named: Any) -> Tensor:
        shapes.add((batch.global_size, *batch.views.shape[:2]))
        sums.clear()
        return step(state, batch, *given, **named)

    def counted(world: World, values: Tensor) -> Tensor:
        sums.append(world.size)
        return add(world, values)

    monkeypatch.setattr(distillation, "train_step", watched)
    monkeypatch.setattr(World, "sum", counted)
    list(run(small(processes=2)))
    assert shapes == {(8, 4, 2)}
    assert sums[:2] == [2, 2], "teachers and finite numbers are those of both processes"


def test_an_objective_with_a_second_network_runs_it_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: dict[str, int] = {}
    forward = nn.BatchNorm2d.forward

    def counted(norm: nn.BatchNorm2d, values: Tensor) -> Tensor:
        passes[objective] += 1
        return forward(norm, values)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", counted)
    for objective in ("ekg", "single", "byol"):
        passes[objective] = 0
        list(run(small(objectives=(objective,))))
    network = build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=1)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for objective in ("single", "byol"):
        assert passes[objective] - passes["ekg"] == 2 * norms  # one unmeasured call, one pair


def test_the_kernels_are_those_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    list(run(small()))
    assert not torch.backends.cudnn.allow_tf32


def test_two_processes_are_for_cpus() -> None:
    with pytest.raises(ValidationError, match="expected 1 with device cuda, found 2"):
        small(processes=2, device="cuda")
