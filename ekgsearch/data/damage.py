"""What happens when a picture that was sound turns out damaged in the middle of a run."""

import bisect
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from ekgsearch.data.decode import open_picture, square_pixels
from ekgsearch.data.encoded import DamagedImageError, EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StandIns:
    """Reads pictures, and in place of a damaged one the next sound one of the same class.

    Next means by ascending id among the ids in use, after the last the first again. The rule looks at the files alone:
    whichever process reads them, in whatever order, the same picture stands in. A damaged picture is logged once and
    not read again.
    """

    def __init__(self, images: EncodedImages, ids: Tensor, *, max_share: float) -> None:
        """Read from some images.

        Args:
            images: the pictures.
            ids: ids in use (M,), int64.
            max_share: damaged pictures that are replaced before giving up, as a share of the ids in use (rounded up).
        """
        self._images = images
        self._allowed = math.ceil(max_share * len(ids))
        self._ids = ids.cpu().sort().values
        self._damaged: dict[int, str] = {}
        self._lock = threading.Lock()

    @property
    def damaged(self) -> dict[int, str]:
        """Ids of the damaged pictures met so far, with what is wrong with them."""
        with self._lock:
            return dict(sorted(self._damaged.items()))

    def read(
        self, ids: Tensor, use: Callable[[int, int, bytes], T], pool: ThreadPoolExecutor
    ) -> tuple[Tensor, list[T]]:
        """Read pictures, several at once, and apply a function to each.

        Args:
            ids: image ids (B,), int64.
            use: called in the threads of the pool with the position in the batch, the id and the bytes of each picture.
            pool: threads.

        Returns:
            Ids (B,), int64, of the pictures that were read (those of the stand-ins in place of damaged ones), and
            what the function made of them.

        Raises:
            DataError: more pictures are damaged than allowed, or a class has no sound one.
        """

        def read_one(position: int, image_id: int) -> tuple[int, T]:
            found, data = self._read_sound(image_id)
            return found, use(position, found, data)

        pairs = list(pool.map(read_one, range(len(ids)), ids.tolist()))
        return torch.tensor([found for found, _ in pairs], dtype=torch.int64), [made for _, made in pairs]

    def read_squares(self, ids: Tensor, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
        """Read pictures as `EncodedImages.read` does; see `read`.

        Returns:
            Ids (B,), int64, of the pictures that were read, and their pixels (B, C, size, size), uint8.
        """
        images = self._images
        pixels = torch.empty(len(ids), *images.image_shape, dtype=torch.uint8)

        def decode(position: int, image_id: int, data: bytes) -> None:
            pixels[position] = torch.from_numpy(square_pixels(open_picture(data, images.channels), images.image_size))

        found, _ = self.read(ids, decode, pool)
        return found, pixels

    def _read_sound(self, image_id: int) -> tuple[int, bytes]:
        """Read a picture, or the first sound one after it in its class."""
        data = self._try(image_id)
        if data is not None:
            return image_id, data
        labels = self._images.labels
        members = self._ids[labels[self._ids] == labels[image_id]].tolist()
        position = bisect.bisect_left(members, image_id)
        for candidate in members[position + 1 :] + members[:position]:
            data = self._try(candidate)
            if data is not None:
                return candidate, data
        where = self._images.source.where(self._images.images[image_id])
        raise DataError(
            f"class {int(labels[image_id])} has no sound picture left that could stand in for {where}; restore it"
        )

    def _try(self, image_id: int) -> bytes | None:
        """Read a picture; None where it is damaged."""
        with self._lock:
            if image_id in self._damaged:
                return None
        try:
            return self._images.read_bytes(image_id)
        except DamagedImageError as error:
            self._note(image_id, error)
            return None

    def _note(self, image_id: int, error: DamagedImageError) -> None:
        with self._lock:
            if image_id in self._damaged:
                return
            self._damaged[image_id] = str(error)
            count = len(self._damaged)
        if count > self._allowed:
            raise DataError(
                f"expected at most {self._allowed} damaged pictures, found {count}; restore them, or raise "
                f"data.max_damaged; the last one: {error}"
            ) from error
        logger.warning(
            "image %d is damaged, the next sound one of its class stands in for it (%d of at most %d): %s",
            image_id,
            count,
            self._allowed,
            error,
        )


def sound_reader(
    images: ImageSet,
    ids: Tensor | None = None,
    *,
    max_share: float,
    on_replaced: Callable[[int], None] = lambda count: None,
) -> Callable[[Tensor], Tensor]:
    """Let whatever needs un-augmented training images outside a loader survive damage by the rule of the loader.

    Args:
        images: the images; those in memory have no damage.
        ids: ids in use (M,), int64; None for all.
        max_share: see `StandIns`.
        on_replaced: told after each batch how many of its images stand in for damaged ones.

    Returns:
        Reads the pixels (B, C, H, W), uint8, of image ids (B,), int64, or of what stands in for them. It raises a
        DataError where more pictures are damaged than allowed, or a class has no sound one.
    """
    if not isinstance(images, EncodedImages):
        return images.read
    stand_ins = StandIns(images, torch.arange(len(images)) if ids is None else ids, max_share=max_share)

    def read(batch: Tensor) -> Tensor:
        with ThreadPoolExecutor(images.num_threads, thread_name_prefix="decode") as pool:
            found, pixels = stand_ins.read_squares(batch, pool)
        on_replaced(int((found != batch.cpu()).sum()))
        return pixels

    return read
