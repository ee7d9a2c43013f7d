"""One of several processes that train together; run as a script by test_ddp.py, which gives rank, size and a folder.

Every scenario leaves one JSON file per rank; rank 0 also saves the weights.
"""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import nn

from ekgsearch.errors import NumericsError
from ekgsearch.finetune.batches import epoch_order
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.world import World
from ekgsearch.storage.tensors import save_tensors


def load_fixtures():
    """Import the conftest beside this file, which makes the images and the bank."""
    spec = importlib.util.spec_from_file_location("fixtures", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(*, normalised: bool) -> nn.Module:
    torch.manual_seed(5)
    middle = [nn.BatchNorm2d(6)] if normalised else []
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *middle, nn.ReLU(), *pool, nn.Linear(24, 3))


def run(world: World, folder: Path) -> None:
    fixtures = load_fixtures()
    data: TrainData = fixtures.make_data()
    bank = fixtures.make_bank()
    config = FinetuneConfig(epochs=4, batch_size=15, learning_rate=0.1, milestones=(3,))  # 15: shares of 7 and 8

    def keep(name: str, model: nn.Module, rows: list[dict[str, float]]) -> None:
        for row in rows:
            row.pop("wall_seconds")
            row.pop("wait_seconds")
        (folder / f"{name}-{world.rank}.json").write_text(json.dumps(rows))
        save_tensors(folder / f"{name}-{world.rank}.safetensors", model.state_dict())

    for objective in ("ekg", "single", "plain"):
        model, teacher = network(normalised=False), network(normalised=True)
        result = train(model, data, replace(config, objective=objective), world=world, bank=bank, teacher=teacher)
        keep(objective, model, [asdict(metrics) for metrics in result.epochs])

    model = network(normalised=True)
    result = train(model, data, config, world=world, bank=bank)
    keep("norm", model, [asdict(metrics) for metrics in result.epochs])

    model, place = network(normalised=True), FolderCheckpoints(folder / "checkpoints")
    try:
        train(model, data, config, world=world, bank=bank, checkpoint=place, on_epoch=stop_after_two)
    except InterruptedError:
        if world.size > 1:
            distributed.barrier()
    model = network(normalised=True)
    result = train(model, data, config, world=world, bank=bank, checkpoint=place)
    keep("resumed", model, [asdict(metrics) for metrics in result.epochs])

    poisoned = epoch_order(data, config, 1)[1][-1]  # in the share of the last rank
    bank.rows[poisoned] = float("nan")
    try:
        train(network(normalised=False), data, config, world=world, bank=bank)
    except NumericsError as error:
        (folder / f"error-{world.rank}.txt").write_text(str(error))


def stop_after_two(metrics) -> None:
    if metrics.epoch == 2:
        raise InterruptedError


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if size > 1:
        rendezvous = f"file://{folder / 'rendezvous'}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    try:
        run(World.current(torch.device("cpu")), folder)
    finally:
        if size > 1:
            distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
