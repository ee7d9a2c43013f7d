"""The batches of an epoch: views from the loader, and beside them the rows of the memory bank."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from torch import Tensor

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.rows import BankRows
from ekgsearch.data.loader import LoadedBatch, Loader, LoaderSettings, open_loader
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.world import World


@dataclass(frozen=True)
class Batch:
    """The part of one global batch, or of one of its micro-batches, that belongs to one process.

    Attributes:
        labels: class indices (B,), int64; None where the objective needs none.
        views: network input (B, V, C, H, W), float32.
        rows: rows of the memory bank, or None.
        global_size: images of the whole batch over all processes.
        replaced: images of this part that were damaged and that others stand in for.
        wait_seconds: how long the computation waited for it, views and rows together.
    """

    labels: Tensor | None
    views: Tensor
    rows: BankRows | None
    global_size: int
    replaced: int = 0
    wait_seconds: float = 0.0

    @property
    def num_images(self) -> int:
        """Images of this part."""
        return len(self.views)

    def micro_batches(self, count: int) -> list["Batch"]:
        """Deal the images out to so many micro-batches, in turn.

        Dealt out in turn, rather than cut, a micro-batch has the same images for any number of processes that share
        the batch evenly.
        """
        if count == 1:
            return [self]
        parts = [self._every(slice(start, None, count)) for start in range(count)]
        return [replace(parts[0], replaced=self.replaced), *parts[1:]]

    def _every(self, part: slice) -> "Batch":
        rows = self.rows
        if rows is not None:
            rows = BankRows(rows.logits[part], None if rows.embeddings is None else rows.embeddings[part])
        labels = None if self.labels is None else self.labels[part]
        return Batch(labels, self.views[part], rows, self.global_size)


def loader_settings(data: TrainData, config: FinetuneConfig, world: World) -> LoaderSettings:
    """What the loader of a training needs to know.

    A short last batch is left out; shuffled, the next epoch leaves out other images.
    """
    return LoaderSettings(
        batch_size=config.batch_size,
        views=config.needs.views,
        labels=config.needs.labels,
        augmentation=config.augmentation,
        normalisation=data.normalisation,
        seed=config.seed,
        shuffle=config.shuffle,
        loader=data.loader,
        threads=data.threads,
        max_damaged=data.max_damaged,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
    )


def open_batches(data: TrainData, config: FinetuneConfig, world: World) -> Loader:
    """Open the loader of a training."""
    return open_loader(data.train, loader_settings(data, config, world), data.ids)


def read_epoch(loader: Loader, epoch: int, *, bank: MemoryBank | None, start: int = 0) -> Iterator[Batch]:
    """Yield this process' part of every batch of an epoch; the rows of the next batch are read during this one.

    Args:
        loader: makes the views.
        epoch: epoch, from 1.
        bank: memory bank whose rows go with the images, or None.
        start: batches that are left out at the beginning of the epoch.
    """
    batches = loader.epoch(epoch, start=start)
    if bank is None:
        yield from (_together(batch, None) for batch in batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="bank") as reader:
        waiting: tuple[LoadedBatch, Future[BankRows]] | None = None
        for batch in batches:
            rows = reader.submit(bank.read, batch.ids)
            if waiting is not None:
                yield _together(*waiting)
            waiting = batch, rows
        if waiting is not None:
            yield _together(*waiting)


def _together(batch: LoadedBatch, rows: Future[BankRows] | None) -> Batch:
    begin = time.monotonic()
    found = None if rows is None else rows.result()
    waited = batch.wait_seconds + time.monotonic() - begin
    return Batch(batch.labels, batch.views, found, batch.global_size, batch.replaced, waited)
