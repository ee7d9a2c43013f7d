"""Pictures that are kept as JPEG or PNG and decoded when they are read, wherever their bytes come from."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ekgsearch.data.decode import open_picture, square_pixels
from ekgsearch.data.index import IndexedImage
from ekgsearch.errors import DataError
from ekgsearch.records import content_hash


class DamagedImageError(DataError):
    """A picture was sound when it was verified and is no longer."""


class Source(Protocol):
    """Where the bytes of verified pictures lie."""

    def read(self, image: IndexedImage) -> bytes:
        """Read the bytes of a picture as they are now.

        Raises:
            OSError: they cannot be read.
        """
        ...

    def where(self, image: IndexedImage) -> str:
        """Name the place in a message."""
        ...


class EncodedImages:
    """Verified pictures of a source, resized to a square; only what is asked for is decoded."""

    def __init__(
        self, images: Sequence[IndexedImage], source: Source, image_size: int, *, num_threads: int, channels: int = 3
    ) -> None:
        """Read from a source.

        Args:
            images: verified pictures.
            source: where their bytes are.
            image_size: height and width that pictures are brought to, pixels.
            num_threads: pictures decoded at once.
            channels: 1, 3 or 4, what pictures are converted to: grey, RGB or RGBA.
        """
        self.images = tuple(images)
        self.source = source
        self.image_size = image_size
        self.num_threads = num_threads
        self.channels = channels
        self.labels = torch.tensor([image.label for image in images], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, pixels."""
        return self.channels, self.image_size, self.image_size

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the checksums and labels of all pictures, and of what they are brought to."""
        pictures = [[image.sha256, image.label] for image in self.images]
        return content_hash([self.image_size, pictures, *([] if self.channels == 3 else [self.channels])])

    def read(self, ids: Tensor) -> Tensor:
        """Decode pixels (B, C, H, W), uint8, of image ids (B,), int64.

        Raises:
            DamagedImageError: a picture is gone or has changed since it was verified.
        """
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as pool:
            pixels = list(pool.map(self._read_square, ids.tolist()))
        return torch.from_numpy(np.stack(pixels))

    def take(self, ids: Tensor) -> "EncodedImages":
        """Return the pictures of some ids (M,), int64, as a set of its own, with ids 0 .. M-1."""
        images = [self.images[image_id] for image_id in ids.tolist()]
        return EncodedImages(images, self.source, self.image_size, num_threads=self.num_threads, channels=self.channels)

    def read_bytes(self, image_id: int) -> bytes:
        """Read a picture as it is stored.

        Raises:
            DamagedImageError: it is gone or has changed since it was verified; a rotten picture often decodes without
                complaint, so only its checksum tells.
        """
        image = self.images[image_id]
        try:
            data = self.source.read(image)
        except OSError as error:
            raise DamagedImageError(
                f"{self.source.where(image)} was verified and cannot be read any more: {error.strerror}"
            ) from error
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DamagedImageError(
                f"{self.source.where(image)} has changed since it was verified ({_state(data)}); "
                "restore it, or start a new run"
            )
        return data

    def _read_square(self, image_id: int) -> np.ndarray:
        return square_pixels(open_picture(self.read_bytes(image_id), self.channels), self.image_size)


def _state(data: bytes) -> str:
    """Say what has become of a picture."""
    try:
        picture = open_picture(data)
    except DataError as error:
        return str(error)
    return f"it still decodes, to {picture.width}x{picture.height} pixels"
