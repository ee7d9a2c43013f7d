"""How the outputs of all teachers for one image lie in one row of bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ekgsearch.errors import NumericsError

BankDtype = Literal["float16", "float32", "int8"]
"""How outputs are stored. Top-k storage is not offered: at temperature 10 the ten largest of 1000 logits hold only
about 4 % of the softened mass."""

STORED: Mapping[BankDtype, torch.dtype] = {"float16": torch.float16, "float32": torch.float32, "int8": torch.int8}

_ALIGNMENT = 4  # of every row and of every part that holds float32, so that bytes can be viewed as numbers
_STEPS = 254  # of int8; one fewer than there are, so that rounding the zero point never pushes a value off the end


@dataclass(frozen=True, slots=True)
class BankRows:
    """What K teachers say about B images.

    Attributes:
        logits: (B, C, K), float32; the teacher of the lowest loss first.
        embeddings: inputs (B, F, K) of the classifier, float32, F as in the unpruned network and removed channels 0;
            None where the bank holds none.
    """

    logits: Tensor
    embeddings: Tensor | None = None

    def __len__(self) -> int:
        return len(self.logits)


@dataclass(frozen=True)
class Part:
    """A piece of every row.

    Attributes:
        name: name of the tensor in a stored block.
        start: first byte within a row.
        shape: (K, values): teacher by teacher.
        dtype: kind of its numbers.
    """

    name: str
    start: int
    shape: tuple[int, int]
    dtype: BankDtype

    @property
    def stop(self) -> int:
        """First byte behind it."""
        return self.start + self.shape[0] * self.shape[1] * STORED[self.dtype].itemsize


@dataclass(frozen=True)
class RowFormat:
    """The layout of the rows of a bank.

    A row of float16 or float32 is the logits, then the embeddings, teacher by teacher. A row of int8 begins with scale
    and zero point (float32) of every teacher's logits and embeddings: a value is `scale * (stored - zero point)`, 0 is
    exact, and the error is at most half a scale, which is the range of that teacher's outputs for that image / 254.

    Attributes:
        num_classes: C, logits per image and teacher.
        embeddings: F, features per image and teacher; 0 where none are stored.
        num_teachers: K.
        dtype: how numbers are stored.
    """

    num_classes: int
    embeddings: int
    num_teachers: int
    dtype: BankDtype

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The pieces of a row, in order."""
        widths = {"logits": self.num_classes, "embeddings": self.embeddings}
        wanted: list[tuple[str, int, BankDtype]] = [
            (name, width, self.dtype) for name, width in widths.items() if width
        ]
        if self.dtype == "int8":
            wanted = [(f"{name}_affine", 2, "float32") for name, _, _ in wanted] + wanted
        parts: list[Part] = []
        for name, width, dtype in wanted:
            parts.append(Part(name, parts[-1].stop if parts else 0, (self.num_teachers, width), dtype))
        return tuple(parts)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row, padding included."""
        return -(-self.parts[-1].stop // _ALIGNMENT) * _ALIGNMENT

    def encode(self, rows: BankRows) -> dict[str, Tensor]:
        """Turn outputs into what is stored.

        Args:
            rows: outputs of R images, finite.

        Returns:
            Tensor (R, K, values) by name of the part, on the CPU.

        Raises:
            NumericsError: a value beyond the range of the dtype.
        """
        stored = {}
        for name, values in (("logits", rows.logits), ("embeddings", rows.embeddings)):
            if values is not None:
                by_teacher = values.detach().cpu().transpose(1, 2).contiguous()
                if self.dtype == "int8":
                    stored[name], stored[f"{name}_affine"] = _to_int8(by_teacher)
                else:
                    stored[name] = _narrowed(by_teacher, self.dtype, name)
        return stored

    def pack(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """Put the parts of R images side by side; rows of one part are not copied.

        Args:
            stored: array (R, K, values) by name of the part.

        Returns:
            Bytes (R, row_bytes), uint8.
        """
        num_rows = len(stored["logits"])
        if len(self.parts) == 1 and self.parts[0].stop == self.row_bytes:
            return np.ascontiguousarray(stored["logits"]).view(np.uint8).reshape(num_rows, self.row_bytes)
        packed = np.zeros((num_rows, self.row_bytes), dtype=np.uint8)
        for part in self.parts:
            values = np.ascontiguousarray(stored[part.name]).view(np.uint8)
            packed[:, part.start : part.stop] = values.reshape(num_rows, part.stop - part.start)
        return packed

    def decode(self, packed: Tensor) -> BankRows:
        """Read rows.

        Args:
            packed: bytes (B, row_bytes), uint8, on any device.

        Returns:
            The outputs, on the same device.
        """
        parts = {
            part.name: packed[:, part.start : part.stop].view(STORED[part.dtype]).reshape(-1, *part.shape)
            for part in self.parts
        }
        logits = self._values(parts, "logits").transpose(1, 2)
        return BankRows(logits, self._values(parts, "embeddings").transpose(1, 2) if self.embeddings else None)

    def _values(self, parts: Mapping[str, Tensor], name: str) -> Tensor:
        if self.dtype == "int8":
            return _from_int8(parts[name], parts[f"{name}_affine"])
        return parts[name].float()


def _narrowed(values: Tensor, dtype: BankDtype, name: str) -> Tensor:
    stored = values.to(STORED[dtype])
    if not torch.isfinite(stored).all():
        raise NumericsError(
            f"memory bank: expected {name} within the range of {dtype}, found {float(values.abs().max()):.6g}; "
            "store the bank as float32"
        )
    return stored


def _to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (R, K, values); every (image, teacher) has its own scale and zero point (R, K, 2)."""
    lowest = values.amin(dim=-1, keepdim=True).clamp(max=0)
    highest = values.amax(dim=-1, keepdim=True).clamp(min=0)
    scale = (highest - lowest) / _STEPS
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round(-127 - lowest / safe)
    stored = (torch.round(values / safe) + zero).clamp(-128, 127).to(torch.int8)
    return stored, torch.cat([scale, zero], dim=-1)


def _from_int8(stored: Tensor, affine: Tensor) -> Tensor:
    scale, zero = affine.unsqueeze(-1).unbind(-2)
    return (stored.float() - zero) * scale
