"""Follow every channel through a traced network: the rules, one for each kind of operation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ekgsearch.channels.labels import Channels, ChannelSets, Number, Plain
from ekgsearch.channels.operations import JOINS, PADS, Kind, is_depthwise, operation_name
from ekgsearch.channels.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class LayerChannels:
    """Channel ids at one call of a layer.

    Attributes:
        path: path of the layer's module.
        kind: convolution, linear layer or norm.
        node: name of the node that calls it.
        inputs: id of each input channel (linear: of each column).
        outputs: id of each output channel.
    """

    path: str
    kind: Kind
    node: str
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Labelling:
    """Where every channel goes.

    Attributes:
        labels: label of each node's value, by node name.
        layers: channel ids at each call of a layer, in execution order.
        sets: which channels go together and which stay.
    """

    labels: dict[str, Any]
    layers: list[LayerChannels]
    sets: ChannelSets


def propagate(trace: Trace) -> Labelling:
    """Label every value of a traced network with the channels its elements belong to.

    Convolutions and linear layers make new channels; movements are executed on the labels; element-wise operations on
    two tensors couple their channels; whatever may mix channels, or is unknown, freezes them with a reason.
    """
    rules = _Rules(trace)
    for node in trace.graph.nodes:
        rules.labels[node.name] = rules.label(node)
    rules.freeze_shared()
    return Labelling(rules.labels, rules.layers, rules.sets)


def call_move(node: fx.Node, modules: dict[str, nn.Module], value_of: Callable[[fx.Node], Any]) -> Any:
    """Execute a movement on other tensors than it was traced with.

    Args:
        node: a node of kind `MOVE`.
        modules: leaf modules by path.
        value_of: tensor or number to use for each node that it reads.
    """
    args = fx.node.map_arg(node.args, value_of)
    kwargs = fx.node.map_arg(dict(node.kwargs), value_of)
    if node.op == "call_module":
        return modules[str(node.target)](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def argument(node: fx.Node, position: int, names: Sequence[str], default: Any = None) -> Any:
    """Read an argument of a call that may be given by position or under one of several names."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def pad_amounts(node: fx.Node) -> tuple[Any, bool, Any]:
    """Read a pad: its amounts, whether it is by a constant, and that constant."""
    if operation_name(node) == "constant_pad_nd":
        return argument(node, 1, ["pad"]), True, argument(node, 2, ["value"], 0)
    mode = argument(node, 2, ["mode"], "constant")
    return argument(node, 1, ["pad"]), mode == "constant", argument(node, 3, ["value"], 0) or 0


def _numbers(label: Any) -> tuple[Number, ...] | None:
    """Give the number or numbers that a label stands for; None where it stands for a tensor."""
    if isinstance(label, Number):
        return (label,)
    if isinstance(label, tuple) and all(isinstance(part, Number) for part in label):
        return label
    return None


def _value(label: Any) -> Any:
    """Give what a movement is executed on: ids in place of elements, plain numbers."""
    if isinstance(label, Channels):
        return label.ids.double()
    return tuple(number.value for number in label) if isinstance(label, tuple) else label.value


class _Rules:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.sets = ChannelSets()
        self.labels: dict[str, Any] = {}
        self.layers: list[LayerChannels] = []

    def label(self, node: fx.Node) -> Any:
        """Label the value of one node, whose inputs are labelled."""
        match self.trace.kinds[node.name]:
            case Kind.INPUT:
                return self._fresh(node, "network input")
            case Kind.OUTPUT:
                return self._freeze(node, "network output")
            case Kind.CONSTANT:
                return self._fresh(node, f"tensor {node.target!r} is used outside a layer")
            case Kind.CONV:
                return self._conv(node)
            case Kind.LINEAR:
                return self._linear(node)
            case Kind.NORM:
                return self._norm(node)
            case Kind.MOVE:
                return self._move(node)
            case Kind.SHAPE:
                return self._shape(node)
            case kind:
                return self._arithmetic(node, kind)

    def _arithmetic(self, node: fx.Node, kind: Kind) -> Any:
        """Label what leaves every channel in its place, or treat the node as unknown."""
        inputs = [self.labels[other.name] for other in node.all_input_nodes]
        numbers = [_numbers(label) for label in inputs]
        if kind in (Kind.BINARY, Kind.NUMBER) and inputs and None not in numbers:
            return self._number(node)
        if any(number.ids is not None for several in numbers for number in several or ()):
            return self._unknown(node)  # a result that depends on how many channels there are
        first = self.labels[node.args[0].name] if node.args and isinstance(node.args[0], fx.Node) else None
        others = [label for label, several in zip(inputs, numbers, strict=True) if label is not first and several is None]
        label: Channels | None = None
        if kind is Kind.BINARY:
            label = self._binary(node)
        elif isinstance(first, Channels) and not others:
            match kind:
                case Kind.IDENTITY | Kind.ELEMENTWISE:
                    label = self._canonical(first)
                case Kind.REDUCE:
                    label = self._reduce(node, first)
                case Kind.SOFTMAX:
                    label = self._softmax(node, first)
                case Kind.POOL if operation_name(node) in ("amax", "amin"):
                    label = self._reduce(node, first)
                case Kind.POOL | Kind.AVERAGE:
                    label = self._pool(node, first)
        if label is None or tuple(label.ids.shape) != self.trace.shapes.get(node.name):
            return self._unknown(node)
        return label

    def _fresh(self, node: fx.Node, reason: str) -> Channels | Plain:
        """Label a value that no known layer made: channels that stay, on axis 1."""
        shape = self.trace.shapes.get(node.name)
        if shape is None or len(shape) < 2:
            return Plain(is_scalar=shape is not None and torch.Size(shape).numel() == 1)
        return Channels.along(self.sets.fresh(shape[1], reason), shape, 1)

    def _freeze(self, node: fx.Node, reason: str) -> None:
        def walk(label: Any) -> None:
            if isinstance(label, Channels):
                self.sets.freeze(label.all_ids, reason)
            elif isinstance(label, Number) and label.ids is not None:
                self.sets.freeze(label.ids, reason)
            elif isinstance(label, (tuple, list)):
                for part in label:
                    walk(part)

        for other in node.all_input_nodes:
            walk(self.labels[other.name])

    def _unknown(self, node: fx.Node) -> Channels | Plain:
        if node.op == "call_module":
            what = f"{type(self.trace.modules[str(node.target)]).__name__} {str(node.target)!r}"
        else:
            what = f"operation {operation_name(node) or str(node.target)!r} (node {node.name!r})"
        self._freeze(node, f"{what} may mix channels")
        return self._fresh(node, f"result of {what}")

    def _canonical(self, label: Any) -> Channels | None:
        """Give a label with one channel axis; a folded image is made one by coupling the ids within each channel."""
        if not isinstance(label, Channels) or label.axis is not None:
            return label if isinstance(label, Channels) else None
        if label.ids.ndim != 4:
            return None
        vector = label.ids[0, :, 0, 0].clone()
        self.sets.join(vector.reshape(1, -1, 1, 1), label.ids)
        return Channels.along(vector, label.ids.shape, 1)

    def _entering(self, node: fx.Node, axis: int, size: int) -> Tensor:
        """Ids of the channels that enter a layer; where they do not lie on its channel axis, they are frozen."""
        first = node.args[0]
        label = self._canonical(self.labels[first.name]) if isinstance(first, fx.Node) else None
        if label is not None and axis < 0:
            axis += label.ids.ndim
        if label is not None and label.axis == axis and label.ids.shape[axis] == size:
            return label.vector
        reason = f"layer {str(node.target)!r} does not read them along its channel axis"
        self._freeze(node, reason)
        return self.sets.fresh(size, reason)

    def _leaving(self, node: fx.Node, vector: Tensor, inputs: Tensor, axis: int = 1) -> Channels:
        shape = self.trace.shapes[node.name]
        kind = self.trace.kinds[node.name]
        self.layers.append(LayerChannels(str(node.target), kind, node.name, inputs, vector))
        return Channels.along(vector, shape, axis % len(shape))

    def _conv(self, node: fx.Node) -> Channels | Plain:
        module = self.trace.modules[str(node.target)]
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        if len(self.trace.shapes[node.name]) != 4:
            return self._unknown(node)
        inputs = self._entering(node, 1, module.in_channels)
        if is_depthwise(module):
            outputs = inputs.repeat_interleave(module.out_channels // module.in_channels)
        else:
            outputs = self.sets.fresh(module.out_channels)
            self._couple_groups(inputs, module.groups)
            self._couple_groups(outputs, module.groups)
        return self._leaving(node, outputs, inputs)

    def _couple_groups(self, ids: Tensor, groups: int) -> None:
        """Couple channel j of every group of a grouped convolution, since all groups must stay equally wide."""
        if groups > 1:
            by_group = ids.reshape(groups, -1)
            self.sets.join(by_group[:1], by_group)

    def _linear(self, node: fx.Node) -> Channels:
        module = self.trace.modules[str(node.target)]
        assert isinstance(module, nn.Linear)
        inputs = self._entering(node, -1, module.in_features)
        return self._leaving(node, self.sets.fresh(module.out_features), inputs, axis=-1)

    def _norm(self, node: fx.Node) -> Channels | Plain | None:
        module = self.trace.modules[str(node.target)]
        first = node.args[0]
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            label = self._canonical(self.labels[first.name]) if isinstance(first, fx.Node) else None
            return label or self._unknown(node)
        shape = self.trace.shapes[node.name]
        if len(shape) < 2 or (isinstance(module, nn.InstanceNorm2d) and len(shape) != 4):
            return self._unknown(node)
        ids = self._entering(node, 1, shape[1])
        return self._leaving(node, ids, ids)

    def _binary(self, node: fx.Node) -> Channels | None:
        if len(node.args) < 2 or operation_name(node).endswith(("div", "divide")) and isinstance(node.args[1], fx.Node):
            return None  # a removed channel would divide by zero
        values = [self.labels[other.name] for other in node.args[:2] if isinstance(other, fx.Node)]
        tensors = [label for label in values if not isinstance(label, Number)]
        tensors = [label for label in tensors if not (isinstance(label, Plain) and label.is_scalar)]
        labels = [label for label in (self._canonical(label) for label in tensors) if label is not None]
        if not labels or len(labels) != len(tensors):
            return None
        shape = self.trace.shapes.get(node.name, ())
        axes = {(label.axis or 0) - label.ids.ndim for label in labels}
        if len(axes) != 1 or max(label.ids.ndim for label in labels) != len(shape):
            return None
        first, last = labels[0], labels[-1]
        if len(first.vector) == len(last.vector):
            self.sets.join(first.vector, last.vector)
        else:
            narrow = min(first, last, key=lambda label: len(label.vector))
            self.sets.freeze(narrow.vector, f"one channel is spread over many (node {node.name!r})")
        wide = max(first, last, key=lambda label: len(label.vector))
        return Channels.along(wide.vector, shape, len(shape) + axes.pop())

    def _reduce(self, node: fx.Node, label: Channels) -> Channels | None:
        given = argument(node, 1, ["dim", "axis"])
        if given is None or label.axis is None:
            return None
        count = label.ids.ndim
        asked = list(given) if isinstance(given, (tuple, list)) else [given]
        if not all(isinstance(axis, int) for axis in asked):
            return None
        axes = {axis % count for axis in asked}
        if label.axis in axes or 0 in axes or not axes:
            return None
        keep = argument(node, 2, ["keepdim"], False)
        axis = label.axis if keep else label.axis - sum(other < label.axis for other in axes)
        return Channels.along(label.vector, self.trace.shapes[node.name], axis)

    def _softmax(self, node: fx.Node, label: Channels) -> Channels | None:
        over = argument(node, 1, ["dim"])
        if node.op == "call_module":
            over = self.trace.modules[str(node.target)].dim
        if not isinstance(over, int) or label.axis is None or over % label.ids.ndim in (label.axis, 0):
            return None
        return label

    def _pool(self, node: fx.Node, label: Channels) -> Channels | None:
        source, shape = self._canonical(label), self.trace.shapes.get(node.name, ())
        if source is None or source.axis != 1 or source.ids.ndim != 4 or len(shape) != 4 or shape[1] != len(source.vector):
            return None
        return Channels.along(source.vector, shape, 1)

    def _number(self, node: fx.Node) -> Any:
        """Evaluate arithmetic on sizes; the result depends on every channel count that enters it."""
        if node.op != "call_function":
            return self._unknown(node)
        several = [number for other in node.all_input_nodes for number in _numbers(self.labels[other.name]) or ()]
        counts = [number.ids for number in several if number.ids is not None]
        args = fx.node.map_arg(node.args, lambda other: _value(self.labels[other.name]))
        result = node.target(*args, **node.kwargs)  # type: ignore[operator]
        ids = torch.cat(counts) if counts else None
        if isinstance(result, tuple) and all(isinstance(part, int) for part in result):
            return tuple(Number(part, ids) for part in result)
        return Number(result, ids) if isinstance(result, (int, float)) else self._unknown(node)

    def _shape(self, node: fx.Node) -> Any:
        first = self.labels[node.args[0].name] if node.args and isinstance(node.args[0], fx.Node) else None
        name = operation_name(node)
        if not isinstance(first, Channels):
            return Plain(is_scalar=False) if first is not None else self._unknown(node)
        asked = node.args[1] if name == "getattr" else name
        sizes = tuple(
            Number(size, first.all_ids if axis == first.axis or (first.axis is None and axis) else None)
            for axis, size in enumerate(first.ids.shape)
        )
        match asked:
            case "shape":
                return sizes
            case "size" | "sym_size":
                index = argument(node, 1, ["dim"])
                return sizes if index is None else sizes[index] if isinstance(index, int) else self._unknown(node)
            case "dim" | "ndimension" | "ndim":
                return Number(first.ids.ndim)
            case "numel" | "sym_numel":
                return Number(first.ids.numel(), first.all_ids)
            case "dtype" | "device":
                return Number(None)
        return self._unknown(node)

    def _move(self, node: fx.Node) -> Any:
        """Execute a movement on the labels."""
        inputs = [self.labels[other.name] for other in node.all_input_nodes]
        name, first = operation_name(node), inputs[0] if inputs else None
        if name == "getitem" and isinstance(first, tuple) and isinstance(node.args[1], int | slice):
            return first[node.args[1]]
        if name in JOINS:
            return self._join(node) or self._unknown(node)
        tensors = [label for label in inputs if _numbers(label) is None]
        known = all(isinstance(label, Channels) for label in tensors) and (len(tensors) == 1 or name.endswith("_as"))
        if not isinstance(first, Channels) or not known:
            return self._unknown(node)
        if name in PADS:
            return self._pad(node) or self._unknown(node)
        axis = 1 if first.axis is None else first.axis
        try:
            moved = call_move(node, self.trace.modules, lambda other: _value(self.labels[other.name]))
        except (RuntimeError, TypeError, IndexError):  # not possible on labels: treated like any unknown operation
            return self._unknown(node)
        if isinstance(moved, Tensor):
            label = Channels.found(moved.long(), axis)
            return label if tuple(label.ids.shape) == self.trace.shapes.get(node.name) else self._unknown(node)
        return tuple(Channels.found(part.long(), axis) for part in moved)

    def _join(self, node: fx.Node) -> Channels | None:
        parts = [self.labels[other.name] for other in node.all_input_nodes]
        listed = node.args[0] if node.args else None
        shape = self.trace.shapes.get(node.name)
        dim = argument(node, 1, ["dim", "axis"], 0)
        if shape is None or not isinstance(listed, (tuple, list)) or not isinstance(dim, int):
            return None
        labels = [self._canonical(self.labels[part.name]) for part in listed if isinstance(part, fx.Node)]
        known = [label for label in labels if label is not None and label.axis is not None]
        if len(known) != len(listed) or any(isinstance(part, Number) for part in parts):
            return None
        axis, dim, stacked = known[0].axis, dim % len(shape), operation_name(node) == "stack"
        if axis is None or any(label.axis != axis or label.ids.ndim != known[0].ids.ndim for label in known):
            return None
        if dim == axis and not stacked:
            return Channels.along(torch.cat([label.vector for label in known]), shape, axis)
        for label in known[1:]:
            self.sets.join(known[0].vector, label.vector)
        return Channels.along(known[0].vector, shape, axis + (stacked and dim <= axis))

    def _pad(self, node: fx.Node) -> Channels | None:
        """Pad the labels; channels added by a constant are new ones."""
        label = self._canonical(self.labels[node.all_input_nodes[0].name])
        if label is None or label.axis is None or len(node.all_input_nodes) != 1:
            return None
        amounts, constant, value = pad_amounts(node)
        if not constant:
            moved = call_move(node, self.trace.modules, lambda _: label.ids.double()).long()
            return Channels.found(moved, label.axis)
        if any(isinstance(amount, fx.Node) for amount in amounts):
            return None
        moved = F.pad(label.ids, list(amounts), value=-1)
        others = [axis for axis in range(moved.ndim) if axis != label.axis]
        vector = moved.amax(dim=others)
        added = vector < 0
        vector[added] = self.sets.fresh(int(added.sum()), "" if value == 0 else f"padded with {value} (node {node.name!r})")
        return Channels.along(vector, moved.shape, label.axis)

    def freeze_shared(self) -> None:
        """Freeze layers that are called more than once or share their parameters with another layer."""
        owners: dict[int, set[str]] = {}
        for path, module in self.trace.modules.items():
            for tensor in module.parameters():
                owners.setdefault(id(tensor), set()).add(path)
        tied = {path for paths in owners.values() if len(paths) > 1 for path in paths}
        calls = [layer.path for layer in self.layers]
        for layer in self.layers:
            if calls.count(layer.path) > 1 or layer.path in tied:
                why = "is used more than once" if layer.path not in tied else "shares its weights with another layer"
                self.sets.freeze(torch.cat([layer.inputs, layer.outputs]), f"layer {layer.path!r} {why}")
