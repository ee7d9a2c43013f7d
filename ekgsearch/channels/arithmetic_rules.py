"""How operations without weights treat channels: element by element, over positions, or on sizes alone."""

from typing import Any

import torch
from torch import fx

from ekgsearch.channels.calls import argument
from ekgsearch.channels.labelling import Labelling
from ekgsearch.channels.labels import Channels, Number, Plain, numbers_of, value_of
from ekgsearch.channels.operations import Kind, operation_name


def label_arithmetic(labelling: Labelling, node: fx.Node) -> Any:
    """Label what leaves every channel in its place, or treat the node as unknown."""
    kind = labelling.trace.kinds[node.name]
    inputs = [labelling.labels[other.name] for other in node.all_input_nodes]
    numbers = [numbers_of(label) for label in inputs]
    if kind in (Kind.BINARY, Kind.NUMBER) and inputs and None not in numbers:
        return _number(labelling, node)
    if any(number.ids is not None for several in numbers for number in several or ()):
        return labelling.unknown(node)  # a result that depends on how many channels there are
    first = labelling.label(node.args[0]) if node.args else None
    tensors = [label for label, several in zip(inputs, numbers, strict=True) if several is None]
    found: Channels | None = None
    if kind is Kind.BINARY:
        found = _binary(labelling, node)
    elif isinstance(first, Channels) and len(tensors) == 1:
        found = _one_tensor(labelling, node, kind, first)
    if found is None or tuple(found.ids.shape) != labelling.shape(node):
        return labelling.unknown(node)
    return found


def label_shape(labelling: Labelling, node: fx.Node) -> Any:
    """Label sizes; the size of a channel axis depends on the channels."""
    first = labelling.label(node.args[0])
    name = operation_name(node)
    if not isinstance(first, Channels):
        return labelling.unknown(node)
    sizes = tuple(
        Number(size, first.all_ids if axis == first.axis or (first.axis is None and axis) else None)
        for axis, size in enumerate(first.ids.shape)
    )
    match node.args[1] if name == "getattr" else name:
        case "shape":
            return sizes
        case "size" | "sym_size":
            index = argument(node, 1, ["dim"])
            return sizes if index is None else sizes[index] if isinstance(index, int) else labelling.unknown(node)
        case "dim" | "ndimension" | "ndim":
            return Number(first.ids.ndim)
        case "numel" | "sym_numel":
            return Number(first.ids.numel(), first.all_ids)
        case "dtype" | "device":
            return Number(None)
    return labelling.unknown(node)


def _number(labelling: Labelling, node: fx.Node) -> Any:
    """Evaluate arithmetic on sizes; the result depends on every channel count that enters it."""
    if node.op != "call_function":
        return labelling.unknown(node)
    several = [number for other in node.all_input_nodes for number in numbers_of(labelling.labels[other.name]) or ()]
    counts = [number.ids for number in several if number.ids is not None]
    args = fx.node.map_arg(node.args, lambda other: value_of(labelling.labels[other.name]))
    result = node.target(*args, **node.kwargs)  # type: ignore[operator]
    ids = torch.cat(counts) if counts else None
    if isinstance(result, tuple) and all(isinstance(part, int) for part in result):
        return tuple(Number(part, ids) for part in result)
    return Number(result, ids) if isinstance(result, (int, float)) else labelling.unknown(node)


def _one_tensor(labelling: Labelling, node: fx.Node, kind: Kind, label: Channels) -> Channels | None:
    match kind:
        case Kind.IDENTITY | Kind.ELEMENTWISE:
            return labelling.canonical(label)
        case Kind.REDUCE:
            return _reduce(labelling, node, label)
        case Kind.SOFTMAX:
            return _softmax(labelling, node, label)
        case Kind.POOL if operation_name(node) in ("amax", "amin"):
            return _reduce(labelling, node, label)
        case Kind.POOL | Kind.AVERAGE:
            return _pool(labelling, node, label)
    return None


def _binary(labelling: Labelling, node: fx.Node) -> Channels | None:
    """Couple the channels of two tensors; a single channel that is spread over many stays."""
    divides = operation_name(node).endswith(("div", "divide"))
    if len(node.args) < 2 or (divides and isinstance(node.args[1], fx.Node)):
        return None  # a removed channel would divide by zero
    values = [labelling.label(value) for value in node.args[:2] if isinstance(value, fx.Node)]
    tensors = [label for label in values if numbers_of(label) is None]
    tensors = [label for label in tensors if not (isinstance(label, Plain) and label.is_scalar)]
    labels = [label for label in map(labelling.canonical, tensors) if label is not None]
    shape = labelling.shape(node) or ()
    places = {(label.axis or 0) - label.ids.ndim for label in labels}
    if len(labels) != len(tensors) or len(places) != 1 or max(label.ids.ndim for label in labels) != len(shape):
        return None
    narrow, wide = sorted((labels[0], labels[-1]), key=lambda label: len(label.vector))
    if len(narrow.vector) == len(wide.vector):
        labelling.sets.join(labels[0].vector, labels[-1].vector)
    else:
        labelling.sets.freeze(narrow.vector, f"one channel is spread over many (node {node.name!r})")
    return Channels.along(wide.vector, shape, len(shape) + places.pop())


def _reduce(labelling: Labelling, node: fx.Node, label: Channels) -> Channels | None:
    """Keep the channels of a reduction over other axes than those of the channels and the images."""
    given = argument(node, 1, ["dim", "axis"])
    asked = list(given) if isinstance(given, (tuple, list)) else [given]
    shape = labelling.shape(node)
    if label.axis is None or shape is None or not asked or not all(isinstance(axis, int) for axis in asked):
        return None
    axes = {axis % label.ids.ndim for axis in asked}
    if label.axis in axes or 0 in axes:
        return None
    axis = label.axis
    if not argument(node, 2, ["keepdim"], False):
        axis -= sum(other < axis for other in axes)
    return Channels.along(label.vector, shape, axis)


def _softmax(labelling: Labelling, node: fx.Node, label: Channels) -> Channels | None:
    over = argument(node, 1, ["dim"])
    if node.op == "call_module":
        over = labelling.trace.modules[str(node.target)].dim
    if not isinstance(over, int) or label.axis is None or over % label.ids.ndim in (label.axis, 0):
        return None
    return label


def _pool(labelling: Labelling, node: fx.Node, label: Channels) -> Channels | None:
    source, shape = labelling.canonical(label), labelling.shape(node) or ()
    if source is None or source.axis != 1 or source.ids.ndim != 4 or len(shape) != 4 or shape[1] != len(source.vector):
        return None
    return Channels.along(source.vector, shape, 1)
