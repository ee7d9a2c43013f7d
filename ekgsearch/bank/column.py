"""One column of a memory bank: what one teacher says about every image, and which stored object holds which block."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ekgsearch.bank.layout import VERSION, BlockLayout, check_count, fields_of
from ekgsearch.bank.rows import STORED, BankDtype, PartName, stored_tensors
from ekgsearch.errors import JobError, StorageError
from ekgsearch.records import canonical_json, content_hash


@dataclass(frozen=True, kw_only=True)
class ColumnSpec(BlockLayout):
    """Everything that decides the content of one column; banks that have an equal one share its blocks.

    Attributes:
        dataset_hash: content hash of the training images.
        weights_hash: hash of the weights of the unpruned network.
        network_hash: hash of the unpruned network and its input normalisation; empty where no network gives the rows.
        teacher: `Subnetwork.sha256` of the teacher.
        part: which of its outputs.
        width: values per image: C logits or F embeddings.
        dtype: how they are stored.
        tier: what rounds differently: kind of device, threads, precision; a short text.
        version: layout of the stored objects.
    """

    dataset_hash: str
    weights_hash: str
    network_hash: str
    teacher: str
    part: PartName
    width: int
    dtype: BankDtype
    tier: str
    version: int = VERSION

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            JobError: a count below 1 or an unknown dtype.
        """
        super().__post_init__()
        check_count("width", self.width)
        if self.dtype not in STORED:
            raise JobError(f"bank: expected dtype {', '.join(STORED)}, found {self.dtype!r}")

    @property
    def tensors(self) -> dict[str, tuple[int, BankDtype]]:
        """Values per image and kind of number of each tensor of a block."""
        return stored_tensors(self.part, self.width, self.dtype)

    @property
    def image_bytes(self) -> int:
        """Bytes per image."""
        return sum(width * STORED[dtype].itemsize for width, dtype in self.tensors.values())

    @property
    def prefix(self) -> str:
        """Key prefix under which the blocks and the manifest of this column lie."""
        return f"column/{self.sha256[:16]}"

    @property
    def manifest_key(self) -> str:
        """Key of the manifest."""
        return f"{self.prefix}/manifest.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One stored block of a column.

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
class ColumnManifest:
    """The list of shards that makes a column complete; the first one stored counts for everybody.

    Attributes:
        spec: what the column is made of.
        shards: one per block, in block order.
    """

    spec: ColumnSpec
    shards: tuple[Shard, ...]

    @property
    def sha256(self) -> str:
        """Content hash of the manifest."""
        return content_hash(asdict(self))

    @property
    def counters(self) -> dict[str, int]:
        """Totals over the column, for whoever looks at the manifest; compared when it is read."""
        return {
            "images": sum(shard.rows for shard in self.shards),
            "blocks": len(self.shards),
            "bytes": sum(shard.bytes for shard in self.shards),
        }

    def to_bytes(self) -> bytes:
        """Serialise to canonical JSON."""
        return canonical_json({**asdict(self), "counters": self.counters}).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "ColumnManifest":
        """Parse what `to_bytes` wrote.

        Args:
            data: the JSON.
            where: name of the object, for the error message.

        Raises:
            StorageError: damaged JSON, missing or unknown fields, or another layout version.
        """
        try:
            raw: dict[str, Any] = json.loads(data)
            spec = ColumnSpec(**fields_of(raw["spec"], where))
            manifest = cls(spec, tuple(Shard(**shard) for shard in raw["shards"]))
            if raw["counters"] != manifest.counters:
                raise ValueError(f"it counts {raw['counters']} and lists {manifest.counters}")
            if [shard.block for shard in manifest.shards] != list(range(spec.num_blocks)):
                raise ValueError(f"it lists other blocks than 0..{spec.num_blocks - 1}")
            return manifest
        except (ValueError, KeyError, TypeError, JobError) as error:
            raise StorageError(
                f"{where}: expected the manifest of a column of a memory bank, found {len(data)} bytes that do not "
                f"parse ({error}); delete the object and build the bank again"
            ) from error
