"""Batches of an epoch: the images of each, made ahead of the computation; shared by all loaders."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ekgsearch.data.damage import StandIns
from ekgsearch.data.images import ImageSet
from ekgsearch.data.subset import batches, permutation, share
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.errors import DataError

LoaderName = Literal["auto", "dali", "torch"]
"""Which back end makes the views; auto takes DALI where it can run and is worth it."""

READ_AHEAD = 2
"""Batches that are made while the network computes; more only holds memory."""

Pixels = TypeVar("Pixels")


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """What decides the batches of an epoch, and who makes them.

    Attributes:
        batch_size: images of one batch over all processes.
        views: augmented views of each image.
        labels: whether the batches have labels; without, images that have none will do.
        augmentation: how a view is made.
        normalisation: turns pixels into network input.
        seed: of the order of the images and of the views.
        shuffle: whether every epoch has an order of its own; off, the images come in the order of the ids.
        drop_last: leave out a short last batch, unless it is the only one.
        loader: back end.
        threads: pictures decoded at once.
        rank: index of this process, 0..world_size-1.
        world_size: processes that share each batch.
        device: where the batches go; DALI decodes there, too, if it is a GPU.
        max_damaged: damaged pictures that are replaced before giving up, as a share of the images in use, rounded up;
            each loader counts those that it meets itself.
    """

    batch_size: int
    views: int
    augmentation: Augmentation
    normalisation: Normalisation
    seed: int
    labels: bool = True
    shuffle: bool = True
    drop_last: bool = True
    loader: LoaderName = "auto"
    threads: int = 1
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_damaged: float = 1e-4

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            DataError: a value outside its range, with the range.
        """
        ranges = {
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "views": (self.views >= 1, "1 or more"),
            "loader": (self.loader in ("auto", "dali", "torch"), "auto, dali or torch"),
            "threads": (self.threads >= 1, "1 or more"),
            "rank": (0 <= self.rank < self.world_size, f"of 0..{self.world_size - 1}"),
            "max_damaged": (0 <= self.max_damaged <= 1, "in 0..1"),
        }
        for name, (holds, expected) in ranges.items():
            if not holds:
                raise DataError(f"loader: expected {name} {expected}, found {getattr(self, name)!r}")


@dataclass(frozen=True)
class LoadedBatch:
    """The part of one global batch that belongs to one process; empty where there are fewer images than processes.

    Attributes:
        ids: ids (B,), int64, of the images whose views these are.
        labels: class indices (B,), int64; None where they are not asked for.
        views: network input (B, V, C, H, W), float32.
        global_size: images of the batch over all processes.
        replaced: images of this part that were damaged; others of their class, named in `ids`, stand in for them.
        wait_seconds: how long the computation waited for it; views that are made in its own thread are part of that,
            on a GPU the time it takes to launch them.
    """

    ids: Tensor
    labels: Tensor | None
    views: Tensor
    global_size: int
    replaced: int = 0
    wait_seconds: float = 0.0


class Loader(Protocol):
    """The batches of any epoch.

    Every image in use comes at most once per epoch, and exactly once where no short last batch is left out; a view is a
    function of (seed, epoch, view, image id), and the order of (seed, epoch); processes of one world agree on both.
    """

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    @property
    def damaged(self) -> dict[int, str]:
        """Ids of the damaged images that this process met so far, with what is wrong with them."""
        ...

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[LoadedBatch]:
        """Yield this process' part of every batch of an epoch, made ahead of the computation.

        Args:
            epoch: epoch, from 1.
            start: batches that are left out at the beginning; the others are those of the whole epoch.

        Raises:
            DataError: more images are damaged than allowed.
        """
        ...


@dataclass(frozen=True)
class ReadBatch(Generic[Pixels]):
    """Images on their way to their views.

    Attributes:
        ids: ids (B,), int64, of the images that were read.
        labels: class indices (B,), int64; None where they are not asked for.
        pixels: what was read of them.
        replaced: of them, those that stand in for a damaged one.
    """

    ids: Tensor
    labels: Tensor | None
    pixels: Pixels
    replaced: int = 0


class ReadingLoader(Generic[Pixels]):
    """A loader that is put together from reading images and making views of what was read."""

    def __init__(
        self,
        settings: LoaderSettings,
        ids: Tensor,
        *,
        read: Callable[[Tensor, int], ReadBatch[Pixels]],
        render: Callable[[ReadBatch[Pixels], int], Tensor],
        render_ahead: bool,
        shape: tuple[int, int, int],
        stand_ins: StandIns | None = None,
    ) -> None:
        """Put a loader together.

        Args:
            settings: what decides the batches.
            ids: image ids in use (M,), int64.
            read: called in a thread of its own with the ids of one batch and the epoch.
            render: makes views (B, V, C, H, W) of one epoch of what was read, which is something.
            render_ahead: whether `render`, too, is called in a thread of its own, rather than in the consumer's.
            shape: channels, height and width of a view, pixels.
            stand_ins: where damaged images are counted.
        """
        self._settings = settings
        self._ids = ids
        self._read = read
        self._render = render
        self._render_ahead = render_ahead
        self._shape = shape
        self._stand_ins = stand_ins

    def __len__(self) -> int:
        return num_batches(len(self._ids), self._settings)

    @property
    def damaged(self) -> dict[int, str]:
        """Ids of the damaged images met so far, with what is wrong with them."""
        return {} if self._stand_ins is None else self._stand_ins.damaged

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[LoadedBatch]:
        """Yield the batches of an epoch; see `Loader`."""
        pending: deque[tuple[int, Future[tuple[ReadBatch[Pixels], Tensor | None]]]] = deque()
        with (
            ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader,
            ThreadPoolExecutor(1, thread_name_prefix="render-ahead") as renderer,
        ):

            def rendered(read: Future[ReadBatch[Pixels]]) -> tuple[ReadBatch[Pixels], Tensor | None]:
                batch = read.result()
                return batch, self._views(batch, epoch) if self._render_ahead else None

            try:
                for batch in epoch_order(self._ids, self._settings, epoch)[start:]:
                    part = batch[share(len(batch), self._settings.rank, self._settings.world_size)]
                    read = reader.submit(self._read, part, epoch)
                    pending.append((len(batch), renderer.submit(rendered, read)))
                    if len(pending) > READ_AHEAD:
                        yield self._wait(*pending.popleft(), epoch)
                while pending:
                    yield self._wait(*pending.popleft(), epoch)
            finally:
                for pool in (reader, renderer):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _wait(
        self, global_size: int, future: Future[tuple[ReadBatch[Pixels], Tensor | None]], epoch: int
    ) -> LoadedBatch:
        begin = time.monotonic()
        batch, views = future.result()
        if views is None:
            views = self._views(batch, epoch)
        waited = time.monotonic() - begin
        if views.is_cuda:  # made on another stream: its memory must not be used again before this one is done with it
            views.record_stream(torch.cuda.current_stream(views.device))
        ids = to_device(batch.ids, self._settings.device)
        labels = None if batch.labels is None else to_device(batch.labels, self._settings.device)
        return LoadedBatch(ids, labels, views, global_size, batch.replaced, waited)

    def _views(self, batch: ReadBatch[Pixels], epoch: int) -> Tensor:
        if not len(batch.ids):
            return torch.empty(0, self._settings.views, *self._shape, device=self._settings.device)
        return self._render(batch, epoch)


def labels_of(images: ImageSet, ids: Tensor, settings: LoaderSettings) -> Tensor | None:
    """Labels (B,) of image ids (B,), where they are asked for."""
    return images.labels[ids] if settings.labels else None


def epoch_order(ids: Tensor, settings: LoaderSettings, epoch: int) -> list[Tensor]:
    """List the image ids of every global batch of an epoch, equal on all processes.

    Args:
        ids: image ids in use (M,), int64.
        settings: batch size, seed, whether to shuffle and whether to leave out a short last batch.
        epoch: epoch, from 1.
    """
    if settings.shuffle:
        ids = ids[permutation(len(ids), settings.seed, epoch)]
    return batches(ids, settings.batch_size)[: num_batches(len(ids), settings)]


def num_batches(images: int, settings: LoaderSettings) -> int:
    """Count the batches of an epoch."""
    whole, rest = divmod(images, settings.batch_size)
    return whole + 1 if rest and (not settings.drop_last or not whole) else whole


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device; to a GPU without waiting for it."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
