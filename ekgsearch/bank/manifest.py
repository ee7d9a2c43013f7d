"""What a memory bank is made of, and which stored object holds which block of it."""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ekgsearch.bank.rows import STORED, BankDtype, RowFormat
from ekgsearch.errors import JobError, StorageError
from ekgsearch.records import canonical_json, content_hash

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class BankSpec:
    """Everything that decides the content of a memory bank; two banks of equal specs are interchangeable.

    Attributes:
        dataset_hash: content hash of the training images.
        weights_hash: hash of the weights that all teachers share.
        network_hash: hash of the unpruned network and its input normalisation; empty where no network gives the rows.
        teachers: `Subnetwork.sha256` of each teacher, the one of the lowest loss first.
        num_images: N, training images that the bank covers.
        num_classes: C, logits per image and teacher.
        batch_size: images per batch; batch statistics make it part of the result.
        seed: seed of the fixed permutation that fills the batches.
        batches_per_block: whole batches in one block, the unit of distribution and storage.
        embeddings: F, features of the classifier's input per image and teacher; 0 where none are stored.
        dtype: how logits and embeddings are stored.
        ids: ids of these images, ascending, as ranges [first, last + 1); empty for 0 .. N-1, the whole training set.
        version: layout of the stored objects.
    """

    dataset_hash: str
    weights_hash: str
    teachers: tuple[str, ...]
    num_images: int
    num_classes: int
    network_hash: str = ""
    batch_size: int = 256
    seed: int = 1
    batches_per_block: int = 8
    embeddings: int = 0
    dtype: BankDtype = "float16"
    ids: tuple[tuple[int, int], ...] = ()
    version: int = VERSION

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            JobError: a count below 1 or an unknown dtype.
        """
        for name in ("num_images", "num_classes", "batch_size", "batches_per_block"):
            if getattr(self, name) < 1:
                raise JobError(f"bank: expected {name} of at least 1, found {getattr(self, name)}")
        if not self.teachers:
            raise JobError("bank: expected at least one teacher, found none; choose teachers before building")
        if self.embeddings < 0:
            raise JobError(f"bank: expected embeddings of 0 or more features, found {self.embeddings}")
        if self.dtype not in STORED:
            raise JobError(f"bank: expected dtype {', '.join(STORED)}, found {self.dtype!r}")
        ends = [end for pair in self.ids for end in pair]
        count = sum(stop - start for start, stop in self.ids)
        if self.ids and (ends[0] < 0 or ends != sorted(set(ends)) or count != self.num_images):
            raise JobError(f"bank: expected ascending ranges of {self.num_images} ids, found {count} in {self.ids[:3]}")

    @property
    def image_ids(self) -> Tensor:
        """Ids (N,), int64, of the images that it covers, ascending."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.ids or ((0, self.num_images),)])

    @property
    def num_teachers(self) -> int:
        """K, teachers per image."""
        return len(self.teachers)

    @property
    def num_blocks(self) -> int:
        """Blocks, the last one possibly shorter."""
        return -(-self.num_images // (self.batch_size * self.batches_per_block))

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_images * self.row_format.row_bytes

    @cached_property
    def row_format(self) -> RowFormat:
        """How the outputs for one image are stored."""
        return RowFormat(self.num_classes, self.embeddings, self.num_teachers, self.dtype)

    @cached_property
    def sha256(self) -> str:
        """Content hash of the spec; without ids where it covers a whole training set."""
        return content_hash({name: value for name, value in asdict(self).items() if name != "ids" or value})

    @property
    def prefix(self) -> str:
        """Key prefix under which the blocks and the manifest of this bank lie."""
        return f"bank/{self.sha256[:16]}"

    def differences(self, other: "BankSpec") -> list[str]:
        """Name every field in which another bank differs: "field expected X, found Y"."""
        pairs = [(item.name, getattr(self, item.name), getattr(other, item.name)) for item in fields(self)]
        return [
            f"{name}: expected {_text(name, mine)}, found {_text(name, theirs)}"
            for name, mine, theirs in pairs
            if mine != theirs
        ]


def id_ranges(ids: Tensor) -> tuple[tuple[int, int], ...]:
    """Write ascending ids (N,), int64, as ranges [first, last + 1)."""
    starts = [0, *((ids.diff() != 1).nonzero().flatten() + 1).tolist(), len(ids)]
    return tuple((int(ids[start]), int(ids[stop - 1]) + 1) for start, stop in pairwise(starts))


def _text(name: str, value: Any) -> str:
    """Write the value of a field; ids are named without listing them."""
    if name != "ids":
        return str(value)
    if not value:
        return "those of all images"
    count = sum(stop - start for start, stop in value)
    return f"{count} among {value[0][0]}..{value[-1][1] - 1} (SHA-256 {content_hash(value)[:8]}...)"


@dataclass(frozen=True, slots=True)
class Shard:
    """One stored block.

    Attributes:
        block: block index, from 0.
        key: key of the object in the store; ends in the checksum.
        sha256: checksum of the object.
        rows: images in the block.
        bytes: size of the object.
    """

    block: int
    key: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BankManifest:
    """The list of shards that makes a bank complete; written last, read first.

    Attributes:
        spec: what the bank is made of.
        shards: one per block, in block order.
    """

    spec: BankSpec
    shards: tuple[Shard, ...]

    @property
    def sha256(self) -> str:
        """Content hash of the manifest."""
        return content_hash(asdict(self))

    @property
    def counters(self) -> dict[str, int]:
        """Totals over the bank, for whoever looks at the manifest; compared when it is read."""
        return {
            "images": sum(shard.rows for shard in self.shards),
            "teachers": self.spec.num_teachers,
            "blocks": len(self.shards),
            "bytes": sum(shard.bytes for shard in self.shards),
        }

    def to_bytes(self) -> bytes:
        """Serialise to canonical JSON."""
        return canonical_json({**asdict(self), "counters": self.counters}).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "BankManifest":
        """Parse what `to_bytes` wrote.

        Args:
            data: the JSON.
            where: name of the object, for the error message.

        Raises:
            StorageError: damaged JSON, missing or unknown fields, or another layout version.
        """
        try:
            raw: dict[str, Any] = json.loads(data)
            version = raw["spec"]["version"]
            if version != VERSION:
                raise StorageError(
                    f"{where}: expected memory bank layout {VERSION}, found {version}; "
                    "build the bank again or read it with the version that wrote it"
                )
            ids = tuple((start, stop) for start, stop in raw["spec"].get("ids", ()))
            spec = BankSpec(**{**raw["spec"], "teachers": tuple(raw["spec"]["teachers"]), "ids": ids})
            manifest = cls(spec, tuple(Shard(**shard) for shard in raw["shards"]))
            if raw["counters"] != manifest.counters:
                raise ValueError(f"it counts {raw['counters']} and lists {manifest.counters}")
            return manifest
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{where}: expected the manifest of a memory bank, found {len(data)} bytes that do not parse "
                f"({error}); delete the object and build the bank again"
            ) from error
