"""Training steps of each fine-tuning objective against a step of plain distributed data parallel training.

Both sides take the same number of optimiser steps on the same two views of the same images, with the same network, in
the same processes, under DistributedDataParallel, with the same optimiser. The plain side is written out here as it
usually is: forward, cross-entropy over both views, backward, step. The other side is what the training loop does in
every step: reading ahead, rows of the memory bank, losses, check for finite numbers, metrics. The views of both come
from the loader, so that making them costs both alike. Pairs are interleaved; the goal is a ratio of at most 1.10 for
`ekg`. The memory bank is a stored one with its local copy complete, so that gathering and decoding rows are part of the
step; the rows are random numbers, whose values do not change the work.

In two processes, each takes half of every batch, and what the step sums over processes (gradients on both sides; the
choice of teachers and the check for finite numbers on one) crosses them through gloo; in one process these sums are
nothing. Times are means over the processes. Process time leaves out what a process waits for the other, wall time has
it, and whatever else the machine does. Plain steps against plain steps show how far either can be trusted.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from pydantic import Field, model_validator
from torch import nn

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.build import write_block
from ekgsearch.bank.commit import commit
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.bench.base import BenchSettings, Measurement, abab, gpu_lacking, pixels_in_small, ratio
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.head import classifier
from ekgsearch.channels.slim import slim
from ekgsearch.data.images import ArrayImages
from ekgsearch.data.views import Normalisation
from ekgsearch.fields import MOST, Pixels, Positive, Share
from ekgsearch.finetune.batches import open_batches, read_epoch
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.objectives.registry import ObjectiveName, needs_of
from ekgsearch.finetune.state import start
from ekgsearch.finetune.step import train_step
from ekgsearch.finetune.world import World, data_parallel
from ekgsearch.methods.baselines.uniform import uniform_width
from ekgsearch.methods.budget import set_budget
from ekgsearch.records import Subnetwork
from ekgsearch.sections.net import NetName, network_error
from ekgsearch.storage.objects import ObjectStore, open_store

BANK_IMAGES = 4096
"""Images in the memory bank, at least: few enough for any disk, more than lie side by side in a file."""

_PATIENCE = timedelta(minutes=5)
"""After which a process takes the other for lost."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["distillation"]
    net: NetName = Field("resnet56", description="network of the zoo")
    num_classes: int = Field(10, ge=2, le=65_536, description="classes")
    image_size: Pixels = Field(32, description="side of the images, pixels")
    reduction: Share = Field(0.45, description="share of the MACs that the slim network lacks")
    objectives: tuple[ObjectiveName, ...] = Field(("ekg",), description="objectives that are compared with plain steps")
    teachers: Positive = Field(5, description="teachers in the memory bank")
    batch_size: int = Field(128, ge=2, le=MOST, description="images of a step, over all processes")
    steps: Positive = Field(4, description="steps on each side of a pair")
    pairs: Positive = Field(5, description="pairs")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of both sides")
    device: Literal["cpu", "cuda"] = Field("cpu", description="device")
    processes: int = Field(1, ge=1, le=2, description="processes that share every batch; 2 only on the CPU")

    @property
    def lacking(self) -> str:
        """The GPU, where it is about one."""
        return gpu_lacking(self.device)

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Two small steps on each side of one pair."""
        few = {"teachers": 2, "batch_size": 8, "steps": 2, "pairs": 1}
        small = {name: min(getattr(self, name), most) for name, most in few.items()}
        return {**small, "image_size": pixels_in_small(self.image_size)}, ()

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        if error := network_error(self.net, self.image_size):
            raise ValueError(f"net: {error}")
        share, rest = divmod(self.batch_size, self.processes)
        compared = max((needs_of(name).images for name in self.objectives), default=1)
        if compared > 1 and (rest or share < compared):
            shares = f"equal shares of {compared} or more for {self.processes}"
            raise ValueError(f"batch_size = {self.batch_size}: expected {shares}")
        if self.processes > 1 and self.device == "cuda":
            raise ValueError("processes: expected 1 with device cuda, found 2; they exchange sums over gloo, on CPUs")
        return self


def run(settings: Settings) -> Iterator[Measurement]:
    """Measure every objective against plain steps, and plain steps against themselves."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        others = [
            spawn.Process(target=_take_part, args=(settings, rank, Path(folder)), daemon=True)
            for rank in range(1, settings.processes)
        ]
        for other in others:
            other.start()
        try:
            yield from _measure(settings, 0, Path(folder))
            for other in others:
                other.join()
        finally:
            for other in others:
                other.kill()
                other.join()


def _take_part(settings: Settings, rank: int, folder: Path) -> None:
    """Measure beside the first process, which reports."""
    for _ in _measure(settings, rank, folder):
        pass


def _measure(settings: Settings, rank: int, folder: Path) -> Iterator[Measurement]:
    """Measure as one of the processes; all find the same."""
    torch.set_num_threads(1)
    EXACT.set_backends()  # the kernels of any training
    device = torch.device(settings.device)
    generator = torch.Generator().manual_seed(1)
    images = settings.steps * settings.batch_size
    size = (images, 3, settings.image_size, settings.image_size)
    pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, settings.num_classes, (images,), generator=generator)
    data = TrainData(ArrayImages(pixels, labels).to(device), Normalisation((120.0,) * 3, (60.0,) * 3))
    graph = analyse(build(zoo_factory(settings.net, settings.num_classes, size[1:]), seed=1), size[1:])
    budget = set_budget(graph, reduction=settings.reduction, absolute=None, unit="macs", counter="macs")
    kept: Subnetwork = uniform_width(graph, budget)
    head = classifier(graph)

    def network() -> nn.Module:
        return slim(graph, kept).to(device)

    with process_group(World(device, rank, settings.processes), folder / "rendezvous"):
        world = World.current(device)
        plain = _plain(network(), data, settings, world)
        again = _plain(network(), data, settings, world)
        yield from _compare("plain", "plain against itself", again, plain, settings, world)
        for objective in settings.objectives:
            teacher = graph.network if needs_of(objective).teacher else None
            config = _config(settings, objective)
            width = head.width if config.needs.embeddings else 0
            bank = _bank(settings, images, width, folder / objective, world) if config.needs.bank else None
            distilled = _distilled(network(), data, config, world, bank, head.path, teacher)
            yield from _compare(objective, f"{objective} against plain, two views", distilled, plain, settings, world)


def _compare(
    case: str, pair: str, ours: Callable[[], None], plain: Callable[[], None], settings: Settings, world: World
) -> list[Measurement]:
    """Time both sides in turn, by both clocks; times are means over the processes."""
    walls: tuple[list[float], list[float]] = ([], [])

    def walled(steps: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
        def timed() -> None:
            if world.size > 1:
                distributed.barrier()
            start = time.perf_counter()
            steps()
            seconds.append(time.perf_counter() - start)

        return timed

    processor = abab(walled(ours, walls[0]), walled(plain, walls[1]), pairs=settings.pairs)
    found: list[Measurement] = []
    for clock, sides in (("process", processor), ("wall", [seconds[1:] for seconds in walls])):
        quantity = f"{clock} time of a step"
        mine = torch.tensor(sides, dtype=torch.float64)
        first, second = (world.sum(mine) / world.size).tolist()
        found.append(Measurement.of(case, quantity, "ms", [seconds / settings.steps * 1000 for seconds in first]))
        found.append(ratio(pair, quantity, first, second))
    return found


def _config(settings: Settings, objective: ObjectiveName) -> FinetuneConfig:
    return FinetuneConfig(
        objective=objective,
        epochs=1,
        batch_size=settings.batch_size,
        milestones=(),
        precision=settings.precision,
        temperature=10.0 if settings.num_classes >= 1000 else 4.0,
    )


def _bank(settings: Settings, images: int, width: int, folder: Path, world: World) -> MemoryBank:
    """A stored memory bank of random rows, its local copy complete; it covers the images of the steps and more.

    The first process stores it; all share the local copy, as processes of one machine do.
    """
    spec = BankSpec(
        dataset_hash="random",
        weights_hash="random",
        teachers=tuple(map(str, range(settings.teachers))),
        num_images=max(images, BANK_IMAGES),
        num_classes=settings.num_classes,
        batches_per_block=1,
        embeddings=width,
    )
    store = open_store(str(folder / "store"))
    if world.rank == 0:
        _store_rows(store, spec)
    if world.size > 1:
        distributed.barrier()
    bank = MemoryBank.open(store, spec, cache_dir=folder / "cache", device=world.device)
    bank.wait()
    return bank


def _store_rows(store: ObjectStore, spec: BankSpec) -> None:
    generator = torch.Generator().manual_seed(2)
    for block, ids in enumerate(bank_layout(spec)):
        logits, embeddings = (
            torch.randn(len(ids), features, len(spec.teachers), generator=generator)
            for features in (spec.num_classes, spec.embeddings)
        )
        write_block(store, spec, block, BankRows(logits, embeddings if spec.embeddings else None))
    commit(store, spec)


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
    if world.size == 1:  # the loop wraps only what several processes share; the plain side is wrapped in any case
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
        nesterov=config.nesterov and config.momentum > 0,
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
            assert batch.labels is not None
            repeated = batch.labels.repeat_interleave(batch.views.shape[1])
            torch.autograd.backward(functional.cross_entropy(logits.float(), repeated))
            optimizer.step()
        _wait(world.device)

    return epoch


@contextmanager
def process_group(world: World, rendezvous: Path) -> Iterator[None]:
    """A process group of the processes of a world, which meet at a file that does not exist before."""
    distributed.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=world.rank,
        world_size=world.size,
        timeout=_PATIENCE,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
