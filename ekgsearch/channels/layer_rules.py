"""How layers with weights treat channels: convolutions and linear layers make new ones, norms pass them on."""

from collections import Counter

import torch
from torch import Tensor, fx, nn

from ekgsearch.channels.labelling import Labelling, LayerChannels
from ekgsearch.channels.labels import Channels, Plain
from ekgsearch.channels.operations import is_depthwise


def label_conv(labelling: Labelling, node: fx.Node) -> Channels | Plain:
    """Label a convolution: new output channels, or those of its input where it filters each by itself."""
    module = labelling.trace.modules[str(node.target)]
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    if len(labelling.shape(node) or ()) != 4:
        return labelling.unknown(node)
    inputs = _entering(labelling, node, 1, module.in_channels)
    if is_depthwise(module):
        outputs = inputs.repeat_interleave(module.out_channels // module.in_channels)
    else:
        outputs = labelling.sets.fresh(module.out_channels)
        for ids in (inputs, outputs):
            _couple_groups(labelling, ids, module.groups)
    return _leaving(labelling, node, inputs, outputs, 1)


def label_linear(labelling: Labelling, node: fx.Node) -> Channels | Plain:
    """Label a linear layer: new channels on the last axis."""
    module = labelling.trace.modules[str(node.target)]
    assert isinstance(module, nn.Linear)
    inputs = _entering(labelling, node, -1, module.in_features)
    return _leaving(labelling, node, inputs, labelling.sets.fresh(module.out_features), -1)


def label_norm(labelling: Labelling, node: fx.Node) -> Channels | Plain:
    """Label a norm or a PReLU: the channels of its input."""
    module, shape = labelling.trace.modules[str(node.target)], labelling.shape(node) or ()
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return labelling.canonical(labelling.label(node.args[0])) or labelling.unknown(node)
    if len(shape) < 2 or (isinstance(module, nn.InstanceNorm2d) and len(shape) != 4):
        return labelling.unknown(node)
    ids = _entering(labelling, node, 1, shape[1])
    return _leaving(labelling, node, ids, ids, 1)


def freeze_shared(labelling: Labelling) -> None:
    """Freeze layers that are called more than once, or whose parameters are also used elsewhere."""
    owners: dict[int, set[str]] = {}
    for path, module in labelling.trace.modules.items():
        for tensor in module.parameters():
            owners.setdefault(id(tensor), set()).add(path)
    for node in labelling.trace.graph.nodes:
        if node.op == "get_attr":
            owners.setdefault(id(labelling.trace.tensor(str(node.target))), set()).add(node.name)
    tied = {path for paths in owners.values() if len(paths) > 1 for path in paths}
    calls = Counter(layer.path for layer in labelling.layers)
    for layer in labelling.layers:
        if calls[layer.path] > 1 or layer.path in tied:
            why = "has weights that are also used elsewhere" if layer.path in tied else "is used more than once"
            labelling.sets.freeze(torch.cat([layer.inputs, layer.outputs]), f"layer {layer.path!r} {why}")


def _entering(labelling: Labelling, node: fx.Node, axis: int, size: int) -> Tensor:
    """Ids of the channels that enter a layer; where they do not lie on its channel axis, they are frozen."""
    label = labelling.canonical(labelling.label(node.args[0]))
    if label is not None and label.axis == axis % label.ids.ndim and len(label.vector) == size:
        return label.vector
    reason = f"layer {str(node.target)!r} does not read them along its channel axis"
    labelling.freeze_inputs(node, reason)
    return labelling.sets.fresh(size, reason)


def _leaving(labelling: Labelling, node: fx.Node, inputs: Tensor, outputs: Tensor, axis: int) -> Channels:
    shape = labelling.trace.shapes[node.name]
    kind = labelling.trace.kinds[node.name]
    labelling.layers.append(LayerChannels(str(node.target), kind, node.name, inputs, outputs))
    return Channels.along(outputs, shape, axis % len(shape))


def _couple_groups(labelling: Labelling, ids: Tensor, groups: int) -> None:
    """Couple channel j of every group of a grouped convolution, since all groups must stay equally wide."""
    if groups > 1:
        by_group = ids.reshape(groups, -1)
        labelling.sets.join(by_group[:1], by_group)
