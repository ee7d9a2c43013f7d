"""The channels of a traced network while they are followed: labels so far, and what every rule may do with them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ekgsearch.channels.labels import Channels, ChannelSets, Number, Plain
from ekgsearch.channels.operations import Kind, called
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
        trace: the traced network.
        labels: label of each node's value, by node name: `Channels`, `Number`, `Plain` or a tuple of them.
        layers: channel ids at each call of a layer, in execution order.
        sets: which channels go together and which stay.
        opaque: names of the nodes whose operation may do anything to channels.
    """

    trace: Trace
    labels: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerChannels] = field(default_factory=list)
    sets: ChannelSets = field(default_factory=ChannelSets)
    opaque: set[str] = field(default_factory=set)

    @property
    def evaluation_layers(self) -> list[LayerChannels]:
        """Calls of layers in evaluation."""
        return [layer for layer in self.layers if layer.node not in self.trace.auxiliary.nodes]

    @property
    def training_layers(self) -> list[LayerChannels]:
        """Calls of layers that evaluation does not call at all."""
        usual = {layer.path for layer in self.evaluation_layers}
        return [layer for layer in self.layers if layer.path not in usual]

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Shape of a node's tensor; None where its value is not one tensor."""
        return self.trace.shapes.get(node.name)

    def label(self, value: Any) -> Any:
        """Label of an argument; None for one that is no node."""
        return self.labels[value.name] if isinstance(value, fx.Node) else None

    def fresh(self, node: fx.Node, reason: str) -> Channels | Plain:
        """Label a value that no known layer made: channels on axis 1 that stay, for a reason."""
        shape = self.shape(node)
        if shape is None or len(shape) < 2:
            return Plain(is_scalar=shape is not None and torch.Size(shape).numel() == 1)
        return Channels.along(self.sets.fresh(shape[1], reason), shape, 1)

    def freeze_inputs(self, node: fx.Node, reason: str) -> None:
        """Freeze all channels that a node reads, and those whose count it reads."""
        todo = [self.labels[other.name] for other in node.all_input_nodes]
        while todo:
            label = todo.pop()
            if isinstance(label, Channels):
                self.sets.freeze(label.all_ids, reason)
            elif isinstance(label, Number) and label.ids is not None:
                self.sets.freeze(label.ids, reason)
            elif isinstance(label, tuple):
                todo.extend(label)

    def unknown(self, node: fx.Node) -> Channels | Plain:
        """Label the value of an operation that may do anything: what enters and what leaves it stays."""
        if node.op == "call_module":
            what = f"{type(self.trace.modules[str(node.target)]).__name__} {str(node.target)!r}"
        else:
            what = f"operation {called(node)!r} (node {node.name!r})"
        self.opaque.add(node.name)
        self.freeze_inputs(node, f"{what} is not known to keep channels apart")
        return self.fresh(node, f"result of {what}")

    def canonical(self, label: Any) -> Channels | None:
        """Give a label with one channel axis; a folded image gets one by coupling the ids within each channel."""
        if not isinstance(label, Channels) or label.axis is not None:
            return label if isinstance(label, Channels) else None
        if label.ids.ndim != 4:
            return None
        vector = label.ids[0, :, 0, 0].clone()
        self.sets.join(vector.reshape(1, -1, 1, 1), label.ids)
        return Channels.along(vector, label.ids.shape, 1)
