"""Labels that say which channel each element of a tensor belongs to, and which channels must go together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """Channel ids of one tensor.

    Attributes:
        ids: int64 tensor of the shape of the labelled tensor: each element's channel.
        axis: the only axis along which ids vary; None for a folded tensor, where they vary along several.
    """

    ids: Tensor
    axis: int | None

    @classmethod
    def along(cls, vector: Tensor, shape: Iterable[int], axis: int) -> "Channels":
        """Spread one id per channel over a shape."""
        sizes = list(shape)
        view = [1] * len(sizes)
        view[axis] = sizes[axis]
        return cls(vector.reshape(view).expand(sizes), axis)

    @classmethod
    def found(cls, ids: Tensor, axis_if_constant: int) -> "Channels":
        """Find the axis along which ids vary."""
        axes = [axis for axis in range(ids.ndim) if _varies(ids, axis)]
        if len(axes) > 1:
            return cls(ids, None)
        axis = axes[0] if axes else min(axis_if_constant, ids.ndim - 1)
        return cls.along(_line(ids, axis).clone(), ids.shape, axis)

    @property
    def vector(self) -> Tensor:
        """One id per index of the channel axis."""
        if self.axis is None:
            raise ValueError("a folded tensor has no channel axis")
        return _line(self.ids, self.axis)

    @property
    def all_ids(self) -> Tensor:
        """All ids that occur, once or more."""
        return self.ids.reshape(-1) if self.axis is None else self.vector


def _varies(ids: Tensor, axis: int) -> bool:
    if ids.shape[axis] < 2 or ids.stride(axis) == 0:
        return False
    return bool((ids != ids.narrow(axis, 0, 1)).any())


def _line(ids: Tensor, axis: int) -> Tensor:
    return ids[tuple(slice(None) if other == axis else 0 for other in range(ids.ndim))]


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A number read from the size of a tensor; `ids` are the channels whose count it depends on."""

    value: Any
    ids: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Plain:
    """A value without channels: a scalar tensor, a vector, a dtype, or the several results of an unknown operation."""

    is_scalar: bool


@dataclass(slots=True)
class ChannelSets:
    """Channel ids, which of them must be cut together, and which must stay."""

    parents: list[int] = field(default_factory=list)
    reasons: list[tuple[Tensor, str]] = field(default_factory=list)

    def fresh(self, size: int, frozen: str = "") -> Tensor:
        """Make new ids; with a reason, ids that must stay."""
        first = len(self.parents)
        self.parents.extend(range(first, first + size))
        ids = torch.arange(first, first + size)
        if frozen:
            self.freeze(ids, frozen)
        return ids

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Keep channels for good, for a reason in words."""
        self.reasons.append((torch.from_numpy(np.unique(ids.numpy())), reason))

    def join(self, first: Tensor, second: Tensor) -> None:
        """Couple channels pair by pair (broadcasting)."""
        left, right = np.broadcast_arrays(first.numpy(), second.numpy())
        pairs = np.stack([left.reshape(-1), right.reshape(-1)], axis=1)
        for one, other in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist():
            self.parents[self._root(other)] = self._root(one)

    def _root(self, index: int) -> int:
        parents = self.parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def classes(self) -> Tensor:
        """Give each id the number of its set, 0, 1, ... in the order of their lowest ids."""
        roots = torch.tensor([self._root(index) for index in range(len(self.parents))], dtype=torch.int64)
        _, inverse = torch.unique(roots, return_inverse=True)
        count = int(inverse.max()) + 1 if len(inverse) else 0
        lowest = torch.full((count,), len(roots)).scatter_reduce(0, inverse, torch.arange(len(roots)), "amin")
        return torch.argsort(torch.argsort(lowest))[inverse]


def ids_of(label: Any) -> list[Tensor]:
    """Ids of all channels that a value holds, or that the size it stands for counts."""
    numbers = numbers_of(label)
    if numbers is not None:
        return [number.ids for number in numbers if number.ids is not None]
    return [part.all_ids for part in parts_of(label)]


def numbers_of(label: Any) -> tuple[Number, ...] | None:
    """Give the number or numbers that a label stands for; None where it stands for a tensor."""
    if isinstance(label, Number):
        return (label,)
    if isinstance(label, tuple) and all(isinstance(part, Number) for part in label):
        return label
    return None


def value_of(label: Any) -> Any:
    """Give what a call is repeated on: ids in place of elements, plain numbers."""
    if isinstance(label, Channels):
        return label.ids.double()
    return tuple(number.value for number in label) if isinstance(label, tuple) else label.value


def parts_of(label: object) -> list[Channels]:
    """List the channel labels of a value that is one tensor or several."""
    several = label if isinstance(label, tuple) else (label,)
    return [part for part in several if isinstance(part, Channels)]
