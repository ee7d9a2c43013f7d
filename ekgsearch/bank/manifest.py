"""Identity of a memory bank, and the stored columns that make it complete."""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from ekgsearch.bank.column import ColumnSpec
from ekgsearch.bank.layout import VERSION, BlockLayout, check_count, fields_of
from ekgsearch.bank.rows import STORED, BankDtype, PartName, RowFormat
from ekgsearch.errors import JobError, StorageError
from ekgsearch.records import canonical_json, content_hash


@dataclass(frozen=True, kw_only=True)
class BankSpec(BlockLayout):
    """Everything that decides the content of a memory bank; two banks of equal specs are interchangeable.

    Attributes:
        dataset_hash: content hash of the training images.
        weights_hash: hash of the weights that all teachers share.
        network_hash: hash of the unpruned network and its input normalisation; empty where no network gives the rows.
        teachers: `Subnetwork.sha256` of each teacher, the one of the lowest loss first.
        num_classes: C, logits per image and teacher.
        embeddings: F, features of the classifier's input per image and teacher; 0 where none are stored.
        dtype: how logits and embeddings are stored.
        tier: what rounds differently: kind of device, threads, precision; a short text.
        version: layout of the stored objects.
    """

    dataset_hash: str
    weights_hash: str
    teachers: tuple[str, ...]
    num_classes: int
    network_hash: str = ""
    embeddings: int = 0
    dtype: BankDtype = "float16"
    tier: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            JobError: a count below 1 or an unknown dtype.
        """
        super().__post_init__()
        check_count("num_classes", self.num_classes)
        if not self.teachers:
            raise JobError("bank: expected at least one teacher, found none; choose teachers before building")
        if self.embeddings < 0:
            raise JobError(f"bank: expected embeddings of 0 or more features, found {self.embeddings}")
        if self.dtype not in STORED:
            raise JobError(f"bank: expected dtype {', '.join(STORED)}, found {self.dtype!r}")

    @property
    def num_teachers(self) -> int:
        """K, teachers per image."""
        return len(self.teachers)

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.num_images * self.row_format.row_bytes

    @cached_property
    def row_format(self) -> RowFormat:
        """How the outputs for one image lie in the local copy."""
        return RowFormat(self.num_classes, self.embeddings, self.num_teachers, self.dtype)

    @cached_property
    def columns(self) -> tuple[ColumnSpec, ...]:
        """The logits of every teacher, then the embeddings of every teacher where they are stored."""
        widths: dict[PartName, int] = {"logits": self.num_classes, "embeddings": self.embeddings}
        shared = {item.name: getattr(self, item.name) for item in fields(BlockLayout)}
        return tuple(
            ColumnSpec(
                dataset_hash=self.dataset_hash,
                weights_hash=self.weights_hash,
                network_hash=self.network_hash,
                teacher=teacher,
                part=part,
                width=width,
                dtype=self.dtype,
                tier=self.tier,
                **shared,
            )
            for part, width in widths.items()
            if width
            for teacher in self.teachers
        )

    @property
    def prefix(self) -> str:
        """Key prefix of this bank."""
        return f"bank/{self.sha256[:16]}"

    @property
    def manifest_key(self) -> str:
        """Key of the manifest."""
        return f"{self.prefix}/manifest.json"

    def differences(self, other: "BankSpec") -> list[str]:
        """Name every field in which another bank differs: "field expected X, found Y"."""
        pairs = [(item.name, getattr(self, item.name), getattr(other, item.name)) for item in fields(self)]
        return [
            f"{name}: expected {_text(name, mine)}, found {_text(name, theirs)}"
            for name, mine, theirs in pairs
            if mine != theirs
        ]


def _text(name: str, value: Any) -> str:
    """Write the value of a field; ids are named without listing them."""
    if name != "ids":
        return str(value)
    if not value:
        return "those of all images"
    count = sum(stop - start for start, stop in value)
    return f"{count} among {value[0][0]}..{value[-1][1] - 1} (SHA-256 {content_hash(value)[:8]}...)"


@dataclass(frozen=True, slots=True)
class BankManifest:
    """The columns that make a bank complete; written last, read first.

    Attributes:
        spec: what the bank is made of.
        columns: `ColumnManifest.sha256` of each of `spec.columns`, in their order.
    """

    spec: BankSpec
    columns: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Content hash of the manifest."""
        return content_hash(asdict(self))

    def to_bytes(self) -> bytes:
        """Serialise to canonical JSON."""
        return canonical_json(asdict(self)).encode() + b"\n"

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
            spec = BankSpec(**{**fields_of(raw["spec"], where), "teachers": tuple(raw["spec"]["teachers"])})
            manifest = cls(spec, tuple(raw["columns"]))
            if raw.keys() != {"spec", "columns"} or len(manifest.columns) != len(spec.columns):
                raise ValueError(f"expected {len(spec.columns)} columns, found {len(manifest.columns)}")
            return manifest
        except (ValueError, KeyError, TypeError, JobError) as error:
            raise StorageError(
                f"{where}: expected the manifest of a memory bank, found {len(data)} bytes that do not parse "
                f"({error}); delete the object and build the bank again"
            ) from error
