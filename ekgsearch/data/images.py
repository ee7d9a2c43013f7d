"""Image sets as the rest of the system sees them: labels, and pixels by image id."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ekgsearch.errors import DataError
from ekgsearch.records import content_hash


class ImageSet(Protocol):
    """Images and labels in a fixed order; the position of an image is its id."""

    labels: Tensor
    """Class indices (N,), int64, on the CPU."""

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) that changes with any pixel, label or the order."""
        ...

    def __len__(self) -> int: ...

    def read(self, ids: Tensor) -> Tensor:
        """Pixels (B, C, H, W), uint8, of image ids (B,), int64."""
        ...

    def take(self, ids: Tensor) -> "ImageSet":
        """Return the images of some ids (M,), int64, as a set of its own, with ids 0 .. M-1."""
        ...


class ArrayImages:
    """Images that are held in memory, on any device."""

    def __init__(self, images: Tensor, labels: Tensor, *, content_hash: str | None = None) -> None:
        """Hold a tensor of images.

        Args:
            images: pixels (N, C, H, W), uint8, of any number of channels from 1.
            labels: class indices (N,), int64.
            content_hash: hash of both where it is known already; else it is computed when first asked for.

        Raises:
            DataError: shapes or types are others.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] < 1:
            raise DataError(f"images must be uint8 of shape (N, C, H, W), found {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be int64 of shape ({len(images)},), found {labels.dtype} {tuple(labels.shape)}"
            )
        self.images = images
        self.labels = labels.cpu()
        self._content_hash = content_hash

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.images.shape[1]

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of pixels, labels and shape."""
        if self._content_hash is None:
            self._content_hash = array_hash(self.images, self.labels)
        return self._content_hash

    def read(self, ids: Tensor) -> Tensor:
        """Pixels (B, C, H, W), uint8, on the device of the images, of image ids (B,) on any device."""
        return self.images[ids.to(self.images.device)]

    def to(self, device: torch.device | str) -> "ArrayImages":
        """Return the same images held on another device."""
        return ArrayImages(self.images.to(device), self.labels, content_hash=self._content_hash)

    def take(self, ids: Tensor) -> "ArrayImages":
        """Return the images of some ids (M,), int64, as a set of its own, with ids 0 .. M-1."""
        return ArrayImages(self.read(ids), self.labels[ids.cpu()])


@dataclass(frozen=True)
class Dataset:
    """A training set and a test set with the same classes.

    Attributes:
        name: name by which it was opened.
        train: training images.
        test: test images.
        num_classes: number of classes; labels are 0 .. num_classes - 1.
        image_shape: (channels, height, width), pixels.
        mean: usual mean of each channel, such as red, green and blue, in pixel units 0..255.
        std: usual standard deviation of them, in pixel units 0..255.
        class_names: in the order of the labels.
    """

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) that changes with any image or label of the training or the test set."""
        return content_hash({"train": self.train.content_hash, "test": self.test.content_hash})


def array_hash(images: Tensor, labels: Tensor) -> str:
    """SHA-256 (hex) of pixels (N, C, H, W), labels (N,) and their shape."""
    return content_hash(
        {
            "shape": list(images.shape),
            "images": _sha256(images),
            "labels": _sha256(labels),
        }
    )


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(values.cpu().contiguous().numpy().data).hexdigest()
