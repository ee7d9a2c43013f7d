"""Movements in a slim network: left alone, with other sizes, or gathers instead; each is proven by running it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ekgsearch.channels.calls import argument, call_move, pad_amounts
from ekgsearch.channels.labelling import Labelling
from ekgsearch.channels.labels import Channels, value_of
from ekgsearch.channels.operations import JOINS, PADS, Kind, called, operation_name
from ekgsearch.errors import NetworkError

_VIEWS = frozenset({"view", "reshape", "expand"})
_SPLITS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"})
_RESHAPES = frozenset({"view", "reshape", "unflatten", "flatten", "squeeze", "unsqueeze"})


@dataclass(frozen=True, slots=True)
class Resize:
    """Call a function with other sizes: `target(value, *args)` on the same input; sizes may be nodes."""

    target: Any
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """Take channels `index` along `axis` of the value of an earlier node."""

    source: str
    axis: int
    index: tuple[int, ...]


class UncuttableError(NetworkError):
    """A movement that cannot be done on the kept channels alone.

    Attributes:
        node: the node that cannot be rewritten.
    """

    def __init__(self, node: fx.Node) -> None:
        super().__init__(f"node {node.name!r} ({called(node)}) cannot be done on the kept channels alone")
        self.node = node


def plan(labelling: Labelling, kept_ids: Tensor) -> dict[str, Resize | Gather]:
    """Decide how each movement runs in a slim network.

    Every answer is checked: the movement is executed on numbered elements, once whole and once on the kept elements
    only, and both must agree element by element.

    Args:
        labelling: channels of every value of a traced network.
        kept_ids: bool; whether each channel id is kept.

    Returns:
        What replaces each node that cannot stay as it is, by node name.

    Raises:
        UncuttableError: a movement has no form on the kept channels alone.
    """
    planner = _Planner(labelling, kept_ids)
    trace = labelling.trace
    changes: dict[str, Resize | Gather] = {}
    for node in trace.graph.nodes:
        if node.name in labelling.opaque:
            continue  # all that it reads and makes is frozen
        if trace.kinds[node.name] is Kind.MOVE:
            change = planner.change(node)
            if change is not None:
                changes[node.name] = change
        elif any(planner.is_folded(other) for other in node.all_input_nodes):
            raise UncuttableError(node)
    return changes


class _Planner:
    def __init__(self, labelling: Labelling, kept_ids: Tensor) -> None:
        self.trace = labelling.trace
        self.labels = labelling.labels
        self.kept_ids = kept_ids
        self.sizes: dict[str, Any] = {}

    def change(self, node: fx.Node) -> Resize | Gather | None:
        """Find a form of one movement on the kept channels; None where it can stay as it is."""
        label = self.labels[node.name]
        sources = [other for other in node.all_input_nodes if isinstance(self.labels[other.name], Channels)]
        if operation_name(node) in JOINS or not sources:
            return None
        if self.is_folded(node):
            return None  # settled by the movements that read it
        parts = label if isinstance(label, tuple) else (label,)
        if not all(isinstance(part, Channels) for part in parts):
            return None
        if self.is_folded(sources[0]):
            return self._gather(node)
        whole = {other.name: _numbered(self.labels[other.name].ids.shape) for other in sources}
        moved = call_move(node, self.trace.modules, partial(self._given_or_full, whole))
        pieces = moved if isinstance(moved, (tuple, list)) else (moved,)
        wanted = [self._restrict(piece, part) for piece, part in zip(pieces, parts, strict=True)]
        kept = {name: self._restrict(value, self.labels[name]) for name, value in whole.items()}
        if _agrees(self._stays(node, kept), wanted):
            return None
        for resize in self._resizes(node, [piece.shape for piece in wanted]):
            args = fx.node.map_arg(resize.args, self._slim)
            if _agrees(_attempt(partial(resize.target, kept[sources[0].name], *args)), wanted):
                return resize
        return self._gather(node)

    def is_folded(self, node: fx.Node) -> bool:
        """Tell whether the kept elements of a value form no box, so that it has no place in the slim network."""
        label = self.labels[node.name]
        parts = label if isinstance(label, tuple) else (label,)
        return any(isinstance(part, Channels) and self._box(part) is None for part in parts)

    def _box(self, label: Channels) -> dict[int, Tensor] | None:
        """Kept indices on each axis that loses some; None where they do not form a box."""
        if label.axis is not None:
            keep = self.kept_ids[label.vector]
            return {} if bool(keep.all()) else {label.axis: keep.nonzero().flatten()}
        keep = self.kept_ids[label.ids]
        if bool(keep.all()):
            return {}
        axes = [keep.any(dim=[other for other in range(keep.ndim) if other != axis]) for axis in range(keep.ndim)]
        box = torch.ones((), dtype=torch.bool)
        for line in axes:
            box = box.unsqueeze(-1) & line
        if not torch.equal(box, keep):
            return None
        return {axis: line.nonzero().flatten() for axis, line in enumerate(axes) if not bool(line.all())}

    def _restrict(self, value: Tensor, label: Channels) -> Tensor:
        for axis, index in (self._box(label) or {}).items():
            value = value.index_select(axis, index)
        return value

    def _full(self, node: fx.Node) -> Any:
        """The number that a node gives in the whole network."""
        return value_of(self.labels[node.name])

    def _given_or_full(self, values: Mapping[str, Tensor], node: fx.Node) -> Any:
        return values[node.name] if node.name in values else self._full(node)

    def _slim(self, node: fx.Node) -> Any:
        """The number that a node gives in the slim network; an empty-handed tensor of the slim shape for a tensor."""
        label = self.labels[node.name]
        if isinstance(label, Channels):
            if self.is_folded(node):
                raise UncuttableError(node)
            shape = list(label.ids.shape)
            for axis, index in (self._box(label) or {}).items():
                shape[axis] = len(index)
            return torch.zeros(()).expand(shape)
        if node.name not in self.sizes:
            self.sizes[node.name] = call_move(node, self.trace.modules, self._slim)
        return self.sizes[node.name]

    def _stays(self, node: fx.Node, kept: Mapping[str, Tensor]) -> Any:
        return _attempt(
            lambda: call_move(
                node, self.trace.modules, lambda other: kept[other.name] if other.name in kept else self._slim(other)
            )
        )

    def _resizes(self, node: fx.Node, shapes: list[torch.Size]) -> list[Resize]:
        """Propose calls with the sizes of the slim network."""
        name, label = operation_name(node), self.labels[node.name]
        found: list[Resize] = []
        if name in _SPLITS:
            axis = label[0].axis
            found.append(Resize(torch.split, ([int(shape[axis]) for shape in shapes], axis)))
        if name in PADS and label.axis is not None:
            found.append(self._resized_pad(node, label))
        if name in _VIEWS:
            first = argument(node, 1, ["shape", "size"])
            given = list(first) if isinstance(first, (tuple, list)) else list(node.args[1:])
            for axis in self._box(label) or {}:
                if axis < len(given) and given[axis] != -1:
                    given[axis] = int(shapes[0][axis])
            target = torch.Tensor.expand if name == "expand" else torch.reshape
            found.append(Resize(target, (tuple(given),)))
        if name in _RESHAPES or node.op == "call_module":
            found.append(Resize(torch.reshape, ((-1, *map(int, shapes[0][1:])),)))
        return found

    def _resized_pad(self, node: fx.Node, label: Channels) -> Resize:
        amounts, _, value = pad_amounts(node)
        amounts, first = list(amounts), 2 * (label.ids.ndim - 1 - (label.axis or 0))
        keep = self.kept_ids[label.vector]
        if first + 1 < len(amounts):
            before, after = amounts[first], amounts[first + 1]
            amounts[first] = int(keep[: max(before, 0)].sum())
            amounts[first + 1] = int(keep[len(keep) - max(after, 0) :].sum())
        return Resize(torch.nn.functional.pad, (tuple(amounts), "constant", value))

    def _gather(self, node: fx.Node) -> Gather:
        """Replace a chain of movements by taking channels from the nearest value that has a place."""
        chain, source = [node], node.all_input_nodes[0]
        while self.is_folded(source):
            chain.append(source)
            if not source.all_input_nodes or self.trace.kinds[source.name] is not Kind.MOVE:
                raise UncuttableError(node)
            source = source.all_input_nodes[0]
        origin, label = self.labels[source.name], self.labels[node.name]
        if not isinstance(origin, Channels) or not isinstance(label, Channels):
            raise UncuttableError(node)
        axis = origin.axis
        if axis is None or label.axis != axis or label.ids.ndim != origin.ids.ndim:
            raise UncuttableError(node)
        whole = moved = _numbered(origin.ids.shape)
        for link in reversed(chain):
            before = moved
            values = {other.name: before for other in link.all_input_nodes if _is_tensor(self.labels[other.name])}
            moved = call_move(link, self.trace.modules, partial(self._given_or_full, values))
        index = torch.searchsorted(_first_line(whole, axis), _first_line(moved, axis))
        inside = bool((index < whole.shape[axis]).all())
        if not inside or len(index) != len(label.vector) or not _agrees(whole.index_select(axis, index), [moved]):
            raise UncuttableError(node)
        kept = self.kept_ids[origin.vector]
        place = torch.cumsum(kept, 0) - 1
        taken = index[self.kept_ids[label.vector]]
        return Gather(source.name, axis, tuple(place[taken].tolist()))


def _is_tensor(label: Any) -> bool:
    return isinstance(label, Channels)


def _numbered(shape: torch.Size) -> Tensor:
    """Number the elements from 1, so that padding with zeros is told apart."""
    return torch.arange(1, shape.numel() + 1, dtype=torch.float64).reshape(shape)


def _first_line(value: Tensor, axis: int) -> Tensor:
    return value[tuple(slice(None) if other == axis else 0 for other in range(value.ndim))].contiguous()


def _attempt(action: Any) -> Any:
    """Run a movement that may be impossible with these sizes; None where it is."""
    try:
        return action()
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


def _agrees(found: Any, wanted: list[Tensor]) -> bool:
    pieces = list(found) if isinstance(found, (tuple, list)) else [found]
    if len(pieces) != len(wanted):
        return False
    return all(
        isinstance(piece, Tensor) and torch.equal(piece, other) for piece, other in zip(pieces, wanted, strict=True)
    )
