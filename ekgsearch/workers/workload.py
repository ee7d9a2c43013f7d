"""The network and the images that a process opens: a small value that travels to any worker."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ekgsearch.data.datasets import Dataset, ImageSet, open_dataset
from ekgsearch.data.limit import ALL, Limit
from ekgsearch.data.loader import LoaderName
from ekgsearch.data.views import Normalisation
from ekgsearch.errors import DataError, JobError, StorageError
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.weights import load_weights
from ekgsearch.nets.zoo import build
from ekgsearch.runtime.environment import num_cores

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRequest:
    """Which images to open and to evaluate on; equal requests give equal images.

    Attributes:
        name: data set.
        root: its folder, readable from every node; None for data that come with a library.
        image_size: side of the images in pixels; None for the data set's own.
        channels: channels of an image; None for 3.
        classes: number of classes of generated pictures; None for 10.
        limit: which images are opened.
        download: fetch missing files where the network allows.
        max_bad: damaged training pictures that are left out before giving up.
        loader: who makes the views of training images.
        threads: pictures decoded at once by one process; None for one per core, at most 16.
        max_damaged: share of the training images that may turn out damaged later and be replaced.
        content_hash: `Dataset.content_hash` of the images that are expected; None for whatever is there.
        test_images: test images that are evaluated, the first of each class; None for all.
        index: file with the index of the pictures that the run was opened with, readable from every node; None where
            there is none. By it a process opens these pictures whatever has become of them: one that is gone or has
            changed is met when it is read, and one that was added is ignored.
    """

    name: str
    root: Path | None
    image_size: int | None = None
    channels: int | None = None
    classes: int | None = None
    limit: Limit = ALL
    download: bool = False
    max_bad: int = 0
    loader: LoaderName = "auto"
    threads: int | None = None
    max_damaged: float = 1e-4
    content_hash: str | None = None
    test_images: int | None = None
    index: Path | None = None

    def open(self) -> Dataset:
        """Open the images: by their index, or as they are found where it cannot be used.

        Raises:
            DataError: they are missing, damaged or others than expected.
        """
        indexed = self.open_indexed()
        if indexed is not None:
            return indexed
        dataset = self._open(None)
        if self.content_hash is not None and (found := dataset.content_hash) != self.content_hash:
            raise DataError(
                f"{self.name} in {self.root}: expected images of SHA-256 {self.content_hash}, as when the run was "
                f"opened, found {found}, {len(dataset.train)} for training; files were added, removed or changed: "
                "restore them, or start a new run"
            )
        return dataset

    def evaluated(self, dataset: Dataset) -> ImageSet:
        """The test images that are evaluated.

        Raises:
            JobError: the test set has fewer.
        """
        ids = first_of_each_class(dataset.test.labels, self.test_images, "test")
        return dataset.test if ids is None else dataset.test.take(ids)

    def open_indexed(self) -> Dataset | None:
        """Open the expected images by their index.

        Returns:
            The images; None where no index is named or no images are expected, and, with a warning, where the index is
            missing, damaged, of another folder or of other images.

        Raises:
            DataError: the folder of the images is missing.
        """
        if self.index is None or self.content_hash is None:
            return None
        try:
            dataset = self._open(self.index)
        except StorageError as error:
            log.warning("%s; the pictures are verified again", error)
            return None
        if dataset.content_hash != self.content_hash:
            log.warning("%s lists other images than the run was opened with; they are verified again", self.index)
            return None
        return dataset

    def _open(self, index: Path | None) -> Dataset:
        return open_dataset(
            self.name,
            self.root,
            image_size=self.image_size,
            channels=self.channels,
            classes=self.classes,
            limit=self.limit,
            download=self.download,
            max_bad=self.max_bad,
            num_threads=self.num_threads,
            index_file=index,
        )

    @property
    def num_threads(self) -> int:
        """Pictures decoded at once."""
        return min(16, num_cores()) if self.threads is None else self.threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The network and the images of a run.

    Attributes:
        net: the unpruned network.
        weights: safetensors file with its weights, readable from every node.
        data: the images.
        mean: subtracted from the pixels of each channel, in pixel units 0..255.
        std: what the difference is divided by, in pixel units 0..255.
        device: "cpu" or "cuda".
        threads: torch threads of one process; on the CPU they are part of the arithmetic.
    """

    net: NetSpec
    weights: Path
    data: DataRequest
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str
    threads: int

    @property
    def normalisation(self) -> Normalisation:
        """Turns pixels into network input."""
        return Normalisation(self.mean, self.std)

    @property
    def devices_per_worker(self) -> int:
        """What one process holds: one GPU, or as many cores as it has threads."""
        return self.threads if self.device == "cpu" else 1

    def open_network(self) -> nn.Module:
        """Build the unpruned network with its weights, in running mode, on the device.

        Raises:
            NetworkError: the weights are missing, damaged or of another network.
        """
        network = build(self.net)
        load_weights(network, self.weights)
        return network.eval().to(torch.device(self.device))


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
