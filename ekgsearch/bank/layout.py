"""The blocks in which a memory bank is built and stored: which images each holds, in which order."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ekgsearch.data.subset import permutation
from ekgsearch.errors import JobError, StorageError
from ekgsearch.records import content_hash

VERSION = 4
"""Layout of the stored objects."""


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """What decides which images a block holds; a bank and its columns have it in common.

    Attributes:
        num_images: N, training images that are covered.
        batch_size: images per batch; batch statistics make it part of the result.
        seed: seed of the fixed permutation that fills the batches.
        batches_per_block: whole batches in one block, the unit of distribution and storage.
        ids: ids of these images, ascending, as ranges [first, last + 1); empty for 0 .. N-1, the whole training set.
    """

    num_images: int
    batch_size: int = 256
    seed: int = 1
    batches_per_block: int = 8
    ids: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            JobError: a count below 1, or ids that are no ascending ranges of as many images.
        """
        for name in ("num_images", "batch_size", "batches_per_block"):
            check_count(name, getattr(self, name))
        ends = [end for pair in self.ids for end in pair]
        count = sum(stop - start for start, stop in self.ids)
        if self.ids and (ends[0] < 0 or ends != sorted(set(ends)) or count != self.num_images):
            raise JobError(f"bank: expected ascending ranges of {self.num_images} ids, found {count} in {self.ids[:3]}")

    @property
    def image_ids(self) -> Tensor:
        """Ids (N,), int64, of the images that are covered, ascending."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.ids or ((0, self.num_images),)])

    @property
    def num_blocks(self) -> int:
        """Blocks, the last one possibly shorter."""
        return -(-self.num_images // (self.batch_size * self.batches_per_block))

    @cached_property
    def sha256(self) -> str:
        """Content hash of all fields; without ids where a whole training set is covered."""
        return content_hash({name: value for name, value in asdict(self).items() if name != "ids" or value})


def bank_layout(layout: BlockLayout) -> list[Tensor]:
    """Say which images each block holds, in which order.

    The images are permuted once (a folder-ordered data set would otherwise give batches of a single class, whose
    statistics mean nothing) and cut into batches; a block is several whole batches, because a batch must never be
    split. The last batch may be short.

    Returns:
        For each block the image ids (rows,), int64; `torch.split(ids, layout.batch_size)` are its batches.
    """
    order = layout.image_ids[permutation(layout.num_images, layout.seed, 0)]
    return list(torch.split(order, layout.batch_size * layout.batches_per_block))


def block_rows(layout: BlockLayout, block: int) -> int:
    """Count the images of one block.

    Raises:
        StorageError: no such block.
    """
    if not 0 <= block < layout.num_blocks:
        raise StorageError(f"memory bank: expected a block of 0..{layout.num_blocks - 1}, found {block}")
    size = layout.batch_size * layout.batches_per_block
    return min(size, layout.num_images - block * size)


def id_ranges(ids: Tensor) -> tuple[tuple[int, int], ...]:
    """Write ascending ids (N,), int64, as ranges [first, last + 1)."""
    starts = [0, *((ids.diff() != 1).nonzero().flatten() + 1).tolist(), len(ids)]
    return tuple((int(ids[start]), int(ids[stop - 1]) + 1) for start, stop in pairwise(starts))


def check_count(name: str, value: int) -> None:
    """Refuse a count below 1.

    Raises:
        JobError: it is.
    """
    if value < 1:
        raise JobError(f"bank: expected {name} of at least 1, found {value}")


def fields_of(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a layout as they were before they became JSON.

    Args:
        raw: the parsed JSON.
        where: name of the object, for the error message.

    Raises:
        StorageError: another layout version.
        ValueError, KeyError, TypeError: fields of another form.
    """
    if raw["version"] != VERSION:
        raise StorageError(
            f"{where}: expected memory bank layout {VERSION}, found {raw['version']}; "
            "build the bank again or read it with the version that wrote it"
        )
    return {**raw, "ids": tuple((start, stop) for start, stop in raw["ids"])}
