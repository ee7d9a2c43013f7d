"""The images that a process opens: a small value that travels to any worker."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ekgsearch.data.datasets import Dataset, ImageSet, open_dataset
from ekgsearch.data.limit import ALL, Limit
from ekgsearch.data.loader import LoaderName
from ekgsearch.errors import DataError, JobError, StorageError
from ekgsearch.runtime.environment import num_cores

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which images: equal selections of the same content give equal images.

    Attributes:
        name: data set.
        image_size: side of the images in pixels; None for the data set's own.
        channels: channels of an image; None for 3.
        classes: number of classes of generated pictures; None for 10.
        limit: which images are opened.
        content_hash: `Dataset.content_hash` of the images that are expected; None for whichever are there.
        test_images: test images that are evaluated, the first of each class; None for all.
    """

    name: str
    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None
    limit: Limit = ALL
    content_hash: str | None = None
    test_images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How images are found and read; it does not say which.

    Attributes:
        root: folder of the data set, readable from every node; None for data that come with a library.
        download: fetch missing files where the network allows.
        max_bad: damaged training pictures that are left out before giving up.
        loader: who makes the views of training images.
        threads: pictures decoded at once by one process; None for one per core, at most 16.
        max_damaged: share of the training images that may turn out damaged later and be replaced.
        index: file with the index of the pictures that the run was opened with, readable from every node; None where
            there is none. By it a process opens just these pictures: one that is gone or has
            changed is met when it is read, and one that was added is ignored.
    """

    root: Path | None = None
    download: bool = False
    max_bad: int = 0
    loader: LoaderName = "auto"
    threads: int | None = None
    max_damaged: float = 1e-4
    index: Path | None = None

    @property
    def num_threads(self) -> int:
        """Pictures decoded at once."""
        return min(16, num_cores()) if self.threads is None else self.threads


@dataclass(frozen=True, slots=True)
class DataRequest:
    """Images to open.

    Attributes:
        selection: which ones.
        loading: how they are found and read.
    """

    selection: Selection
    loading: Loading = Loading()

    def open(self) -> Dataset:
        """Open the images: by their index, or as they are found where it cannot be used.

        Raises:
            DataError: they are missing, damaged or others than expected.
        """
        indexed = self.open_indexed()
        if indexed is not None:
            return indexed
        dataset = self._open(None)
        expected, found = self.selection.content_hash, dataset.content_hash
        if expected is not None and found != expected:
            raise DataError(
                f"{self.selection.name} in {self.loading.root}: expected images of SHA-256 {expected}, as when the run "
                f"was opened, found {found}, {len(dataset.train)} for training; files were added, removed or changed: "
                "restore them, or start a new run"
            )
        return dataset

    def evaluated(self, dataset: Dataset) -> ImageSet:
        """The test images that are evaluated.

        Raises:
            JobError: the test set has fewer.
        """
        ids = first_of_each_class(dataset.test.labels, self.selection.test_images, "test")
        return dataset.test if ids is None else dataset.test.take(ids)

    def open_indexed(self) -> Dataset | None:
        """Open the expected images by their index.

        Returns:
            The images; None where no index is named or no images are expected, and, with a warning, where the index is
            missing, damaged, of another folder or of other images.

        Raises:
            DataError: the folder of the images is missing.
        """
        index, expected = self.loading.index, self.selection.content_hash
        if index is None or expected is None:
            return None
        try:
            dataset = self._open(index)
        except StorageError as error:
            log.warning("%s; the pictures are verified again", error)
            return None
        if dataset.content_hash != expected:
            log.warning("%s lists other images than the run was opened with; they are verified again", index)
            return None
        return dataset

    def _open(self, index: Path | None) -> Dataset:
        selection, loading = self.selection, self.loading
        return open_dataset(
            selection.name,
            loading.root,
            image_size=selection.image_size,
            channels=selection.channels,
            classes=selection.classes,
            limit=selection.limit,
            download=loading.download,
            max_bad=loading.max_bad,
            num_threads=loading.num_threads,
            index_file=index,
        )


def first_of_each_class(labels: Tensor, num_images: int | None, split: Literal["train", "test"]) -> Tensor | None:
    """The first images of every class, so many in all as evenly as it goes.

    Args:
        labels: class indices (N,), int64.
        num_images: how many; None for all.
        split: which images they are of, for the message.

    Returns:
        Ids (num_images,), int64, ascending; None for all.

    Raises:
        JobError: there are fewer.
    """
    if num_images is None:
        return None
    if num_images > len(labels):
        name = {"train": "training", "test": "test"}[split]
        raise JobError(f"data.{split}_images = {num_images}, but the {name} set has {len(labels)} images; lower it")
    rank_in_class = torch.zeros_like(labels)
    for label in sorted(set(labels.tolist())):
        chosen = labels == label
        rank_in_class[chosen] = torch.arange(int(chosen.sum()))
    order = torch.argsort(rank_in_class, stable=True)
    return order[:num_images].sort().values
