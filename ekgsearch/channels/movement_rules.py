"""How movements treat channels: they are executed on the labels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ekgsearch.channels.calls import argument, call_move, pad_amounts
from ekgsearch.channels.labelling import Labelling
from ekgsearch.channels.labels import Channels, numbers_of, value_of
from ekgsearch.channels.operations import JOINS, PADS, operation_name


def label_move(labelling: Labelling, node: fx.Node) -> Any:
    """Execute a movement on the labels of its input; one that cannot be executed counts as unknown."""
    inputs = [labelling.labels[other.name] for other in node.all_input_nodes]
    name, first = operation_name(node), inputs[0] if inputs else None
    if name == "getitem" and isinstance(first, tuple) and isinstance(node.args[1], int | slice):
        return first[node.args[1]]
    if name in JOINS:
        return _join(labelling, node) or labelling.unknown(node)
    tensors = [label for label in inputs if numbers_of(label) is None]
    known = all(isinstance(label, Channels) for label in tensors) and (len(tensors) == 1 or name.endswith("_as"))
    if not isinstance(first, Channels) or not known:
        return labelling.unknown(node)
    if name in PADS:
        return _pad(labelling, node) or labelling.unknown(node)
    axis = 1 if first.axis is None else first.axis
    try:
        moved = call_move(node, labelling.trace.modules, lambda other: value_of(labelling.labels[other.name]))
    except (RuntimeError, TypeError, IndexError):
        return labelling.unknown(node)
    if not isinstance(moved, Tensor):
        return tuple(Channels.found(part.long(), axis) for part in moved)
    if tuple(moved.shape) != labelling.shape(node):
        return labelling.unknown(node)
    return Channels.found(moved.long(), axis)


def _join(labelling: Labelling, node: fx.Node) -> Channels | None:
    """Join along the channel axis; along any other axis the channels of all parts are coupled."""
    listed, shape = argument(node, 0, ["tensors"]), labelling.shape(node)
    dim = argument(node, 1, ["dim", "axis"], 0)
    if shape is None or not isinstance(listed, (tuple, list)) or not isinstance(dim, int):
        return None
    labels = [label for label in (labelling.canonical(labelling.label(part)) for part in listed) if label is not None]
    if len(labels) != len(listed) or len({(label.axis, label.ids.ndim) for label in labels}) != 1:
        return None
    axis, dim, stacked = labels[0].axis, dim % len(shape), operation_name(node) == "stack"
    assert axis is not None
    if dim == axis and not stacked:
        return Channels.along(torch.cat([label.vector for label in labels]), shape, axis)
    for label in labels[1:]:
        labelling.sets.join(labels[0].vector, label.vector)
    return Channels.along(labels[0].vector, shape, axis + (stacked and dim <= axis))


def _pad(labelling: Labelling, node: fx.Node) -> Channels | None:
    """Pad the labels; channels added by a constant are new ones, and stay unless the constant is zero."""
    label = labelling.canonical(labelling.label(node.args[0]))
    amounts, constant, value = pad_amounts(node)
    if label is None or label.axis is None or any(isinstance(part, fx.Node) for part in (*amounts, value)):
        return None
    if not constant:
        moved = call_move(node, labelling.trace.modules, lambda _: label.ids.double()).long()
        return Channels.found(moved, label.axis)
    moved = F.pad(label.ids, list(amounts), value=-1)
    vector = moved.amax(dim=[axis for axis in range(moved.ndim) if axis != label.axis])
    added = vector < 0
    reason = "" if value == 0 else f"padded with {value} (node {node.name!r})"
    vector[added] = labelling.sets.fresh(int(added.sum()), reason)
    return Channels.along(vector, moved.shape, label.axis)
