"""Follow every channel through a traced network."""

from typing import Any

from torch import fx

from ekgsearch.channels.arithmetic_rules import label_arithmetic, label_shape
from ekgsearch.channels.labelling import Labelling
from ekgsearch.channels.labels import parts_of
from ekgsearch.channels.layer_rules import freeze_shared, label_conv, label_linear, label_norm
from ekgsearch.channels.movement_rules import label_move
from ekgsearch.channels.operations import Kind, is_depthwise
from ekgsearch.channels.trace import Trace


def propagate(trace: Trace) -> Labelling:
    """Label every value of a traced network with the channels its elements belong to.

    Convolutions and linear layers make new channels; movements are executed on the labels; element-wise operations on
    two tensors couple their channels; whatever may mix channels, or is unknown, freezes them with a reason.
    """
    labelling = Labelling(trace)
    for node in trace.graph.nodes:
        labelling.labels[node.name] = _label(labelling, node)
    freeze_shared(labelling)
    _freeze_auxiliary(labelling)
    return labelling


def _freeze_auxiliary(labelling: Labelling) -> None:
    """Keep the channels that only a training makes, and those that it returns: cutting them would gain nothing."""
    auxiliary = labelling.trace.auxiliary
    for layer in labelling.layers:
        passes_on = layer.kind is Kind.NORM or is_depthwise(labelling.trace.modules[layer.path])
        if layer.node in auxiliary.nodes and not passes_on:
            labelling.sets.freeze(layer.outputs, f"layer {layer.path!r} runs in training only")
    returned: list[fx.Node] = []
    fx.node.map_arg(auxiliary.output, returned.append)
    for node in returned:
        for part in parts_of(labelling.labels[node.name]):
            labelling.sets.freeze(part.all_ids, "network output in training")


def _label(labelling: Labelling, node: fx.Node) -> Any:
    match labelling.trace.kinds[node.name]:
        case Kind.INPUT:
            return labelling.fresh(node, "network input")
        case Kind.OUTPUT:
            return labelling.freeze_inputs(node, "network output")
        case Kind.CONSTANT:
            return labelling.fresh(node, f"tensor {node.target!r} is used outside a layer")
        case Kind.CONV:
            return label_conv(labelling, node)
        case Kind.LINEAR:
            return label_linear(labelling, node)
        case Kind.NORM:
            return label_norm(labelling, node)
        case Kind.MOVE:
            return label_move(labelling, node)
        case Kind.SHAPE:
            return label_shape(labelling, node)
    return label_arithmetic(labelling, node)
