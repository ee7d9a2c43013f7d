"""The order of the images of an epoch, and reading them ahead of the computation."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.rows import BankRows
from ekgsearch.data.subset import permutation
from ekgsearch.data.views import view
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.world import World

READ_AHEAD = 2
"""Batches that are read while the network computes; more only holds memory."""


@dataclass(frozen=True)
class Batch:
    """The part of one global batch that belongs to one process.

    Attributes:
        ids: image ids (B,), int64.
        images: pixels (B, 3, H, W), uint8.
        labels: class indices (B,), int64.
        bank: rows of the memory bank, or None.
        global_size: images of the batch over all processes.
        wait_seconds: how long the computation waited for it.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor
    bank: BankRows | None
    global_size: int
    wait_seconds: float = 0.0

    def views(self, data: TrainData, config: FinetuneConfig, epoch: int) -> Tensor:
        """Make the augmented, normalised views (B, V, 3, H, W) of this epoch; the same for any number of processes."""
        return torch.stack(
            [
                view(
                    self.images,
                    self.ids,
                    augmentation=config.augmentation,
                    normalisation=data.normalisation,
                    seed=config.seed,
                    epoch=epoch,
                    view=index,
                )
                for index in range(config.num_views)
            ],
            dim=1,
        )


def epoch_order(data: TrainData, config: FinetuneConfig, epoch: int) -> list[Tensor]:
    """List the image ids of every global batch of an epoch, equal on all processes.

    A short last batch is left out (shuffled, the next epoch leaves out other images), unless it is the only one.

    Args:
        data: names the training ids.
        config: batch size, seed, and whether to shuffle.
        epoch: epoch, from 1.
    """
    ids = torch.arange(len(data.train)) if data.ids is None else data.ids.cpu()
    if config.shuffle:
        ids = ids[permutation(len(ids), config.seed, epoch)]
    batches = torch.split(ids, config.batch_size)
    return [batch for batch in batches if len(batch) == config.batch_size] or list(batches)


def read_epoch(
    data: TrainData, config: FinetuneConfig, epoch: int, *, bank: MemoryBank | None, world: World
) -> Iterator[Batch]:
    """Yield this process' part of every batch of an epoch; a thread reads ahead.

    Args:
        data: the images.
        config: batch size, seed and objective.
        epoch: epoch, from 1.
        bank: memory bank whose rows go with the images, opened on the device of this process, or None.
        world: this process.
    """

    def read(batch: Tensor) -> Batch:
        ids = batch[world.share(len(batch))]
        rows = None if bank is None else bank.read(ids)
        images = _to(data.train.read(ids), world.device)
        labels = _to(data.train.labels[ids.to(data.train.labels.device)], world.device)
        return Batch(ids.to(world.device), images, labels, rows, len(batch))

    yield from read_ahead(read, epoch_order(data, config, epoch))


def read_ahead(read: Callable[[Tensor], Batch], batches: list[Tensor]) -> Iterator[Batch]:
    """Apply a reading function to every item in one background thread, a few items ahead, in order.

    Args:
        read: called in the thread; its exceptions are raised here.
        batches: image ids of each batch.
    """
    pending: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        remaining = iter(batches)
        try:
            for batch in remaining:
                pending.append(reader.submit(read, batch))
                if len(pending) > READ_AHEAD:
                    yield _wait(pending.popleft())
            while pending:
                yield _wait(pending.popleft())
        finally:
            reader.shutdown(wait=True, cancel_futures=True)


def _wait(future: Future[Batch]) -> Batch:
    start = time.monotonic()
    batch = future.result()
    return Batch(**{**vars(batch), "wait_seconds": time.monotonic() - start})


def _to(values: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
