"""One of several processes that train together; run as a script by test_ddp.py, which gives rank, size and a folder.

With `compiled` behind them it runs the compiled scenarios instead of the others. Every scenario leaves one JSON file
per rank; rank 0 also saves the weights.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ekgsearch.data.batching import epoch_order
from ekgsearch.errors import NumericsError
from ekgsearch.finetune.batches import loader_settings
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.objectives import distilled
from ekgsearch.finetune.objectives.registry import OBJECTIVES
from ekgsearch.finetune.synchronised_norm import synchronise_norms
from ekgsearch.finetune.world import World
from ekgsearch.maths.distillation import ekg_loss
from ekgsearch.storage.tensors import save_tensors

CLASSIFIER = "5"

NAMES = ("plain", "single", "ekg", "contrastive", "byol")
CONFIG = FinetuneConfig(epochs=4, batch_size=15, learning_rate=0.1, milestones=(3,))  # 15: shares of 7 and 8
EVEN = replace(CONFIG, epochs=2, batch_size=16, learning_rate=0.05, milestones=(1,), head_width=16, projection_width=8)


def load_fixtures():
    """Import the conftest beside this file, which makes the images and the bank."""
    return load_beside("conftest")


def load_beside(name: str):
    """Import a module beside this file."""
    spec = importlib.util.spec_from_file_location(f"beside_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(*, normalised: bool) -> nn.Module:
    torch.manual_seed(5)
    middle = nn.BatchNorm2d(6) if normalised else nn.Identity()
    pool = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), middle, nn.ReLU(), *pool, nn.Linear(24, 3))


class Scenarios:
    """Runs trainings in this process' world and keeps what they measured."""

    def __init__(self, world: World, folder: Path) -> None:
        fixtures = load_fixtures()
        self.world, self.folder = world, folder
        self.data: TrainData = fixtures.make_data()
        self.bank = fixtures.make_bank()

    def train(self, name: str, config: FinetuneConfig, *, normalised: bool, model=None, data=None, **given) -> None:
        model, losses, teachers = model or network(normalised=normalised), [], []

        def noting_teachers(*arguments, **options) -> tuple[dict[str, Tensor], Tensor]:
            parts, use = ekg_loss(*arguments, **options)
            teachers.append(use.tolist())
            return parts, use

        with patch.object(distilled, "ekg_loss", ekg_loss if config.compile else noting_teachers):
            result = train(
                model,
                data or self.data,
                config,
                world=self.world,
                bank=self.bank,
                teacher=network(normalised=True),
                classifier=CLASSIFIER,
                on_step=lambda step: losses.append([step.epoch, step.step, float(step.loss)]),
                **given,
            )
        rows = [metrics.to_dict() for metrics in result.epochs]
        for row in rows:
            del row["wall_seconds"], row["wait_seconds"]
        path = self.folder / f"{name}-{self.world.rank}.json"
        path.write_text(json.dumps({"epochs": rows, "steps": losses, "teachers": teachers}))
        save_tensors(path.with_suffix(".safetensors"), model.state_dict())

    def norms(self) -> None:
        """One training pass and one running pass of a batch norm, on this process' uneven share of 15 images."""
        generator = torch.Generator().manual_seed(7)
        values, pull = (torch.randn(15, 6, 3, 3, generator=generator) for _ in range(2))
        share = self.world.share(15)
        part = (3 * values + 50)[share].requires_grad_()
        holder = nn.Sequential(nn.BatchNorm2d(6))
        with torch.no_grad():
            holder[0].weight.copy_(torch.rand(6, generator=generator))
            holder[0].bias.copy_(torch.rand(6, generator=generator))
        put_back = synchronise_norms(holder, self.world)
        output = holder(part)
        torch.autograd.backward((output * pull[share]).sum())
        put_back()
        assert type(holder[0]) is nn.BatchNorm2d
        assert part.grad is not None
        found = {"output": output.detach(), "gradient": part.grad, "running": holder.eval()(part.detach())}
        found |= {name: self.world.sum(value.grad) for name, value in holder.named_parameters()}
        found |= dict(holder.named_buffers())
        save_tensors(self.folder / f"layer-{self.world.rank}.safetensors", found)

    def run(self) -> None:
        self.norms()
        if self.world.size <= 2:
            for name in ("ekg", "single", "plain"):
                self.train(name, replace(CONFIG, objective=name), normalised=False)
            self.train("norm", CONFIG, normalised=True)
            self._own_objective()
            self._interrupt()
        for name in NAMES:
            config = replace(EVEN, objective=name, synchronised_norm=True)
            self.train(f"shared-{name}", config, normalised=True)
        self.train("shared-accumulated", replace(EVEN, accumulate=2, synchronised_norm=True), normalised=True)
        queue = replace(EVEN, objective="contrastive", negatives=40, synchronised_norm=True)
        self.train("shared-queue", queue, normalised=True)
        self.train("own", replace(EVEN, epochs=1), normalised=True)
        self._poison()

    def run_compiled(self) -> None:
        for name in ("ekg", "byol"):
            config = replace(EVEN, objective=name, synchronised_norm=True, compile=True)
            self.train(f"compiled-{name}", config, normalised=True)

    def _own_objective(self) -> None:
        """An objective that the package does not know, on images without labels."""
        own = load_beside("reconstruction")
        with patch.dict(OBJECTIVES, {"reconstruction": own.ENTRY}):
            config = replace(own.CONFIG, objective="reconstruction")
            model, data = own.make_autoencoder(), own.unlabelled(self.data)
            self.train("reconstruction", config, normalised=False, model=model, data=data)

    def _interrupt(self) -> None:
        place = FolderCheckpoints(self.folder / "checkpoints")
        try:
            self.train("resumed", CONFIG, normalised=True, checkpoint=place, on_epoch=stop_after_two)
        except InterruptedError:
            if self.world.size > 1:
                distributed.barrier()
        self.train("resumed", CONFIG, normalised=True, checkpoint=place)

    def _poison(self) -> None:
        settings = loader_settings(self.data, CONFIG, self.world)
        bad = epoch_order(torch.arange(48), settings, 1)[1][-1]  # in the share of the last rank
        self.bank.rows[bad] = float("nan")
        try:
            self.train("poisoned", replace(CONFIG, max_skipped=0), normalised=False)
        except NumericsError as error:
            (self.folder / f"error-{self.world.rank}.txt").write_text(str(error))


def stop_after_two(metrics) -> None:
    if metrics.epoch == 2:
        raise InterruptedError


def main(rank: int, size: int, folder: Path, *, compiled: bool = False) -> None:
    torch.set_num_threads(1)
    if size > 1:
        rendezvous = f"file://{folder / 'rendezvous'}"
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    try:
        scenarios = Scenarios(World.current(torch.device("cpu")), folder)
        (scenarios.run_compiled if compiled else scenarios.run)()
    finally:
        if size > 1:
            distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), compiled="compiled" in sys.argv[4:])
