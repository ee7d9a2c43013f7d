"""Frozen records that cross a process or disk border."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Counter = Literal["macs", "ekg", "thop_old", "2xmac"]
"""How operations and parameters are counted; the four conventions of the literature (jobs/README.md, "Costs")."""

NormMode = Literal["batch", "batch_sequential", "running"]
"""Batch normalisation by the statistics of the batch (running ones untouched) or by the running statistics.

batch_sequential: as `batch`, with the sums of the program published with EKG; known to masked networks only.
"""

Precision = Literal["fp32", "tf32", "bf16"]
"""fp32: 32-bit floats. tf32: the same, multiplied with 10 bits of mantissa on a GPU. bf16: activations and kernels of
convolutions and linear layers in 16 bits, norms and statistics in 32."""


class PhaseKind(StrEnum):
    """Kinds of phases of a run, in order; device-hours are tracked for each."""

    PRETRAIN = "pretrain"
    WARMUP = "warmup"
    SEARCH = "search"
    BANK = "bank"
    FINETUNE = "finetune"
    EVALUATE = "evaluate"


def canonical_json(value: Any) -> str:
    """Serialise with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Subnetwork:
    """Which channels every channel group keeps: a small, hashable value that any worker can act on.

    Attributes:
        kept: pairs (channel group name, kept channel indices, ascending and distinct), in group order.
    """

    kept: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, kept: Mapping[str, Iterable[int]]) -> "Subnetwork":
        """Build from a mapping; the order of its keys is kept, the indices are sorted."""
        return cls(tuple((name, tuple(sorted({int(index) for index in indices}))) for name, indices in kept.items()))

    def __getitem__(self, name: str) -> tuple[int, ...]:
        for group, indices in self.kept:
            if group == name:
                return indices
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channel groups, in order."""
        return tuple(name for name, _ in self.kept)

    @property
    def num_kept(self) -> dict[str, int]:
        """Number of kept channels by channel group name."""
        return {name: len(indices) for name, indices in self.kept}

    def replace(self, name: str, indices: Iterable[int]) -> "Subnetwork":
        """Return a copy in which one channel group keeps other channels."""
        if name not in self.names:
            raise KeyError(name)
        kept = dict(self.kept)
        kept[name] = tuple(sorted({int(index) for index in indices}))
        return Subnetwork(tuple(kept.items()))

    def to_dict(self) -> dict[str, list[int]]:
        """Plain form for JSON."""
        return {name: list(indices) for name, indices in self.kept}

    @property
    def sha256(self) -> str:
        """Content hash of this value, independent of the order of the channel groups."""
        return content_hash(self.to_dict())


@dataclass(frozen=True, slots=True)
class Costs:
    """Multiply-accumulates of one forward pass of one image, and parameters, under one counter."""

    macs: int
    params: int
