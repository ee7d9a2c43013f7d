"""Training steps of each fine-tuning objective against a step of plain distributed data parallel training.

Both sides take the same number of optimiser steps on the same two views of the same images, with the same network, in
one process of a process group of one, under DistributedDataParallel, with the same optimiser. The plain side is
written out here as it usually is: forward, cross-entropy over both views, backward, step. The other side is what the
training loop does in every step: reading ahead, rows of the memory bank, losses, check for finite numbers, metrics. The
views of both come from the loader, so that making them costs both alike. Pairs are interleaved; the goal is a ratio of
at most 1.10 for `ekg`. The memory bank is a stored one with its local copy complete, so that gathering and decoding
rows are part of the step; the rows are random numbers, whose values do not change the work.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from pydantic import Field
from torch import nn

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.build import bank_layout, commit, write_block
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.bench.base import BenchSettings, Measurement, abab, ratio
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.head import classifier
from ekgsearch.channels.slim import slim
from ekgsearch.data.images import ArrayImages
from ekgsearch.data.views import Normalisation
from ekgsearch.finetune.batches import open_batches, read_epoch
from ekgsearch.finetune.config import FinetuneConfig, Objective, TrainData
from ekgsearch.finetune.state import start
from ekgsearch.finetune.step import train_step
from ekgsearch.finetune.world import World, data_parallel
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.zoo import build
from ekgsearch.records import Subnetwork
from ekgsearch.search.budget import set_budget
from ekgsearch.search.uniform import uniform_width
from ekgsearch.storage.objects import open_store

BANK_IMAGES = 4096
"""Images in the memory bank, at least: few enough for any disk, more than lie side by side in a file."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["distillation"]
    net: str = Field("resnet56", description="network of the zoo")
    num_classes: int = Field(10, gt=1, description="classes")
    image_size: int = Field(32, gt=0, description="side of the images, pixels")
    reduction: float = Field(0.45, gt=0, lt=1, description="share of the MACs that the slim network lacks")
    objectives: tuple[Objective, ...] = Field(("ekg",), description="objectives that are compared with plain steps")
    teachers: int = Field(5, gt=0, description="teachers in the memory bank")
    batch_size: int = Field(128, gt=1, description="images of a step")
    steps: int = Field(4, gt=0, description="steps on each side of a pair")
    pairs: int = Field(5, gt=0, description="pairs")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of both sides")
    device: Literal["cpu", "cuda"] = Field("cpu", description="device")


def run(settings: Settings) -> list[Measurement]:
    """Measure every objective against plain steps, and plain steps against themselves."""
    torch.set_num_threads(1)
    device = torch.device(settings.device)
    generator = torch.Generator().manual_seed(1)
    images = settings.steps * settings.batch_size
    size = (images, 3, settings.image_size, settings.image_size)
    pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, settings.num_classes, (images,), generator=generator)
    data = TrainData(ArrayImages(pixels, labels).to(device), Normalisation((120.0,) * 3, (60.0,) * 3))
    graph = analyse(
        build(NetSpec(settings.net, settings.num_classes, size[1:]), seed=1),
        size[1:],
    )
    budget = set_budget(graph, reduction=settings.reduction, absolute=None, unit="macs", counter="macs")
    kept: Subnetwork = uniform_width(graph, budget)
    head = classifier(graph)

    def network() -> nn.Module:
        return slim(graph, kept).to(device)

    found: list[Measurement] = []
    with process_group(settings.device), tempfile.TemporaryDirectory() as folder:
        world = World(device)
        plain = _plain(network(), data, settings, world)
        again = _plain(network(), data, settings, world)
        ours, theirs = abab(again, plain, pairs=settings.pairs)
        found.append(ratio("plain against itself", "process time of a step", ours, theirs))
        for objective in settings.objectives:
            teacher = graph.network if objective == "single" else None
            config = _config(settings, objective)
            width = head.width if config.needs_embeddings else 0
            bank = _bank(settings, images, width, Path(folder) / objective, device) if config.needs_bank else None
            distilled = _distilled(network(), data, config, world, bank, head.path, teacher)
            ours, theirs = abab(distilled, plain, pairs=settings.pairs)
            per_step = [seconds / settings.steps * 1000 for seconds in ours]
            found.append(Measurement.of(objective, "process time of a step", "ms", per_step))
            found.append(ratio(f"{objective} against plain, two views", "process time of a step", ours, theirs))
    return found


def _config(settings: Settings, objective: Objective) -> FinetuneConfig:
    return FinetuneConfig(
        objective=objective,
        epochs=1,
        batch_size=settings.batch_size,
        milestones=(),
        precision=settings.precision,
        temperature=10.0 if settings.num_classes >= 1000 else 4.0,
    )


def _bank(settings: Settings, images: int, width: int, folder: Path, device: torch.device) -> MemoryBank:
    """A stored memory bank of random rows, its local copy complete; it covers the images of the steps and more."""
    spec = BankSpec(
        dataset_hash="random",
        weights_hash="random",
        teachers=tuple(map(str, range(settings.teachers))),
        num_images=max(images, BANK_IMAGES),
        num_classes=settings.num_classes,
        batches_per_block=1,
        embeddings=width,
    )
    store, generator = open_store(str(folder / "store")), torch.Generator().manual_seed(2)
    for block, ids in enumerate(bank_layout(spec)):
        logits, embeddings = (
            torch.randn(len(ids), features, settings.teachers, generator=generator)
            for features in (spec.num_classes, width)
        )
        write_block(store, spec, block, BankRows(logits, embeddings if width else None))
    commit(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=folder / "cache", device=device)
    bank.wait()
    return bank


def _distilled(
    model: nn.Module,
    data: TrainData,
    config: FinetuneConfig,
    world: World,
    bank: MemoryBank | None,
    path: str,
    teacher: nn.Module | None,
) -> Callable[[], None]:
    """The steps of an epoch as the training loop takes them."""
    width = bank.spec.embeddings if bank is not None else 0
    state = start(model, config, world, teacher=teacher, classifier=path, teacher_width=width)
    state.parallel = data_parallel(state.objective, world.device)
    loader = open_batches(data, config, world)

    def epoch() -> None:
        state.parallel.train()
        for batch in read_epoch(loader, 1, bank=bank):
            state.running.sums += train_step(state, batch, config, world, rate=0.01, num_steps=len(loader))
        _wait(world.device)

    return epoch


def _plain(model: nn.Module, data: TrainData, settings: Settings, world: World) -> Callable[[], None]:
    """Plain training on two views, as it is usually written."""
    config = _config(settings, "ekg")  # names the same two views
    wrapped = data_parallel(model, world.device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=world.device.type == "cuda",
    )

    def epoch() -> None:
        wrapped.train()
        for batch in open_batches(data, config, world).epoch(1):
            optimizer.zero_grad(set_to_none=True)
            views = batch.views.flatten(0, 1)
            with torch.autocast(views.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                logits = wrapped(views)
            repeated = batch.labels.repeat_interleave(batch.views.shape[1])
            torch.autograd.backward(functional.cross_entropy(logits.float(), repeated))
            optimizer.step()
        _wait(world.device)

    return epoch


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=f"file://{Path(folder) / 'rendezvous'}",
            rank=0,
            world_size=1,
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
