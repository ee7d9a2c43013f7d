"""What processes tell each other crosses their group, nccl on a GPU and gloo on a CPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from torch import nn

from ekgsearch.bench.distillation import process_group
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import StepReport
from ekgsearch.finetune.state import start
from ekgsearch.finetune.world import World


class Several(int):
    """A one that takes itself for more, so that a process alone asks its group as one of several does."""

    def __eq__(self, other: object) -> bool:
        return False

    def __gt__(self, other: int) -> bool:
        return other <= 1

    __hash__ = int.__hash__


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    alone = World(torch.device(request.param))
    with process_group(alone, tmp_path / "rendezvous"):
        yield replace(alone, size=Several(1))


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the collectives that were called."""
    called: list[str] = []

    def note(name: str) -> None:
        call = getattr(distributed, name)
        monkeypatch.setattr(distributed, name, lambda *given: called.append(name) or call(*given))

    note("all_reduce")
    note("all_gather")
    return called


def test_sums_and_rows_of_a_group_of_one_are_its_own(world: World, collectives: list[str]) -> None:
    values, state = torch.arange(3.0, device=world.device), torch.get_rng_state()
    assert torch.equal(world.sum(values), values)
    assert torch.equal(world.gather(values), values[None])
    gathered = world.gather(state)
    assert gathered.device.type == "cpu"
    assert torch.equal(gathered, state[None])
    assert collectives == ["all_reduce", "all_gather", "all_gather"]


def test_a_checkpoint_of_a_group_is_continued_to_the_losses_of_an_unbroken_training(
    world: World,
    collectives: list[str],
    data: TrainData,
    config: FinetuneConfig,
    make_network: Callable[[], nn.Sequential],
    tmp_path: Path,
) -> None:
    """Without dropout, whose random numbers are others where the number of processes seems to have changed."""
    config, place = replace(config, objective="plain", epochs=2, milestones=()), FolderCheckpoints(tmp_path / "kept")
    data = replace(data, train=data.train.to(world.device), test=None)

    def network() -> nn.Module:
        made = make_network()
        made[5] = nn.Identity()
        return made.to(world.device)

    def stop(report: StepReport) -> None:
        if (report.epoch, report.step) == (2, 2):
            raise InterruptedError

    assert isinstance(start(network(), config, world).parallel, nn.parallel.DistributedDataParallel)
    expected = train(network(), data, config, world=world).epochs
    given = {"world": world, "checkpoint": place, "checkpoint_every_steps": 1}
    with pytest.raises(InterruptedError):
        train(network(), data, config, **given, on_step=stop)
    collectives.clear()
    found = train(network(), data, config, **given).epochs
    assert {"all_reduce", "all_gather"} <= set(collectives)
    assert [epoch.loss for epoch in found] == pytest.approx([epoch.loss for epoch in expected], rel=1e-4)
