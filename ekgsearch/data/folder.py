"""Pictures in class folders, decoded when they are read."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ekgsearch.data.decode import open_picture, square_pixels
from ekgsearch.data.images import Dataset
from ekgsearch.data.index import ImageIndex, check_same_classes, index_images
from ekgsearch.errors import DataError
from ekgsearch.records import content_hash

_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
"""The usual ImageNet statistics."""


class ImageFolder:
    """Pictures of an index, resized to a square; only what is asked for is decoded."""

    def __init__(self, index: ImageIndex, image_size: int, *, num_threads: int) -> None:
        """Read from an index.

        Args:
            index: verified pictures.
            image_size: height and width that pictures are brought to, pixels.
            num_threads: pictures decoded at once.
        """
        self.index = index
        self.image_size = image_size
        self.num_threads = num_threads
        self.labels = torch.tensor([image.label for image in index.images], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.index.images)

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the checksums and labels of all pictures, and of the size they are brought to."""
        return content_hash([self.image_size, [[image.sha256, image.label] for image in self.index.images]])

    def read(self, ids: Tensor) -> Tensor:
        """Decode pixels (B, 3, H, W), uint8, of image ids (B,), int64.

        Raises:
            DataError: a file is gone or has changed since it was verified.
        """
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            pixels = list(pool.map(self._read_one, ids.tolist()))
        return torch.from_numpy(np.stack(pixels))

    def take(self, ids: Tensor) -> "ImageFolder":
        """Return the pictures of some ids (M,), int64, as a set of its own, with ids 0 .. M-1."""
        images = tuple(self.index.images[image_id] for image_id in ids.tolist())
        index = dataclasses.replace(self.index, images=images)
        return ImageFolder(index, self.image_size, num_threads=self.num_threads)

    def _read_one(self, image_id: int) -> np.ndarray:
        image = self.index.images[image_id]
        path = self.index.folder / image.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} was verified and cannot be read any more: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DataError(f"{path} has changed since it was verified; restore it, or start a new run")
        return square_pixels(open_picture(data), self.image_size)


def open_image_folder(root: Path, image_size: int, *, max_bad: int = 0, num_threads: int) -> Dataset:
    """Open pictures laid out as root/{train, val or test}/<class>/<file>.

    Args:
        root: the folder.
        image_size: height and width that pictures are brought to, pixels.
        max_bad: unusable files that are left out of the training split with a warning; the test split allows none.
        num_threads: pictures decoded at once.

    Raises:
        DataError: folders are missing or differ between the splits, or too many files are unusable.
    """
    train_folder = root / "train"
    test_folder = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    for folder in (train_folder, test_folder):
        if not folder.is_dir():
            raise DataError(f"expected folders train and val (or test) in {root}, found no {folder.name}")
    check_same_classes(train_folder, test_folder)
    train, test = (index_images(folder, num_threads=num_threads) for folder in (train_folder, test_folder))
    train.check_bad(max_bad)
    test.check_bad(0)
    return Dataset(
        "image_folder",
        ImageFolder(train, image_size, num_threads=num_threads),
        ImageFolder(test, image_size, num_threads=num_threads),
        len(train.class_names),
        (3, image_size, image_size),
        _MEAN,
        _STD,
    )
