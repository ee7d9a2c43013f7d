"""Format of a row of bytes: the outputs of all teachers for one image."""

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

PartName = Literal["logits", "embeddings"]
"""What a teacher says about an image: its logits, or the input of its classifier."""

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
        name: name of the tensor in a stored block of a column.
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
        widths: dict[PartName, int] = {"logits": self.num_classes, "embeddings": self.embeddings}
        tensors = [
            (name, values, dtype)
            for part, width in widths.items()
            if width
            for name, (values, dtype) in stored_tensors(part, width, self.dtype).items()
        ]
        tensors.sort(key=lambda tensor: tensor[2] != "float32")  # scales begin the row: there they are aligned
        parts: list[Part] = []
        for name, width, dtype in tensors:
            parts.append(Part(name, parts[-1].stop if parts else 0, (self.num_teachers, width), dtype))
        return tuple(parts)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row, padding included."""
        return -(-self.parts[-1].stop // _ALIGNMENT) * _ALIGNMENT

    def place(self, packed: np.ndarray, teacher: int, stored: Mapping[str, np.ndarray]) -> None:
        """Put outputs of one teacher where they belong in the rows of R images.

        Args:
            packed: bytes (R, row_bytes), uint8; written to.
            teacher: position of the teacher, from 0.
            stored: array (R, values) by name of the part, as `encode` makes them.
        """
        for part in self.parts:
            if part.name in stored:
                values = stored[part.name].view(np.uint8)
                start = part.start + teacher * values.shape[1]
                packed[:, start : start + values.shape[1]] = values

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


def stored_tensors(part: PartName, width: int, dtype: BankDtype) -> dict[str, tuple[int, BankDtype]]:
    """The tensors that hold a part of one teacher: values per image and kind of number, by name."""
    values: dict[str, tuple[int, BankDtype]] = {part: (width, dtype)}
    return {f"{part}_affine": (2, "float32"), **values} if dtype == "int8" else values


def encode(values: Tensor, part: PartName, dtype: BankDtype) -> dict[str, Tensor]:
    """Turn outputs of one teacher into what is stored.

    Args:
        values: outputs (R, width) for R images, finite.
        part: which outputs they are.
        dtype: how to store them.

    Returns:
        Tensor (R, values) by name, on the CPU; see `stored_tensors`.

    Raises:
        NumericsError: a value beyond the range of the dtype.
    """
    values = values.detach().cpu().contiguous()
    if dtype != "int8":
        return {part: _narrowed(values, dtype, part)}
    stored, affine = _to_int8(values)
    return {part: stored, f"{part}_affine": affine}


def _narrowed(values: Tensor, dtype: BankDtype, name: str) -> Tensor:
    stored = values.to(STORED[dtype])
    if not torch.isfinite(stored).all():
        raise NumericsError(
            f"memory bank: expected {name} within the range of {dtype}, found {float(values.abs().max()):.6g}; "
            "store the bank as float32"
        )
    return stored


def _to_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (R, values); every image has its own scale and zero point (R, 2)."""
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
