"""The slim network: a sub-network with really smaller layers."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.kernels import at_uncut_norm, axes, channel_lines, cut
from ekgsearch.channels.members import Layer
from ekgsearch.channels.movement import Gather, Resize, plan
from ekgsearch.channels.operations import Kind
from ekgsearch.records import Subnetwork


class ChannelGather(nn.Module):
    """Takes channels in a given order along one axis; without parameters and absent from state dicts."""

    index: Tensor

    def __init__(self, axis: int, index: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", index, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Take the channels of a tensor."""
        return value.index_select(self.axis, self.index)


def slim(graph: ChannelGraph, sub: Subnetwork, *, preserve_norm: bool = True) -> nn.Module:
    """Cut a network down to a sub-network.

    The result computes what the masked network computes, in both norm modes. It holds copies; the original network is
    untouched. Its parameters have the original names, so its state dict loads into `slim` of any network of the same
    architecture and the same sub-network. It trains, deep-copies and moves between devices like any module.

    Args:
        graph: analysed network.
        sub: channels that each channel group keeps.
        preserve_norm: scale each cut kernel to the Frobenius norm of the uncut one, as in EKG (arXiv 2203.02651).

    Returns:
        A graph module with the network's training mode.

    Raises:
        NetworkError: the sub-network does not fit the network.
    """
    graph.validate(sub)
    keep = graph.kept_classes(sub)
    changes = plan(graph.trace, graph.labelling.labels, keep[graph.classes])
    parts: dict[str, Any] = {
        path: _cut_layer(graph.layers[path], keep, preserve_norm) if path in graph.layers else copy.deepcopy(module)
        for path, module in graph.trace.modules.items()
    }
    device = next(graph.network.parameters()).device
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    by_name = {node.name: node for node in graph.trace.graph.nodes}
    for node in graph.trace.graph.nodes:
        change = changes.get(node.name)
        copies[node] = _copy_node(new, node, change, copies, by_name, parts, device)
        if node.op == "get_attr":
            parts[str(node.target)] = copy.deepcopy(graph.trace.tensor(str(node.target)))
    new.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    new.lint()
    used = {str(node.target) for node in new.nodes if node.op in ("call_module", "get_attr")}
    module = fx.GraphModule({path: part for path, part in parts.items() if path in used}, new, "SlimNetwork")
    _restore_inplace(module, graph)
    return module.train(graph.network.training)


def _copy_node(
    new: fx.Graph,
    node: fx.Node,
    change: Resize | Gather | None,
    copies: dict[fx.Node, fx.Node],
    by_name: dict[str, fx.Node],
    parts: dict[str, Any],
    device: torch.device,
) -> fx.Node:
    match change:
        case Gather(source, axis, index):
            value = copies[by_name[source]]
            if index == tuple(range(index[0], index[0] + len(index))):
                return new.call_function(torch.narrow, (value, axis, index[0], len(index)))
            path = f"_gather_{node.name}"
            parts[path] = ChannelGather(axis, torch.tensor(index, device=device))
            return new.call_module(path, (value,))
        case Resize(target, args):
            return new.call_function(
                target, (copies[node.all_input_nodes[0]], *fx.node.map_arg(args, copies.__getitem__))
            )
    return new.node_copy(node, copies.__getitem__)


def _cut_layer(layer: Layer, keep: Tensor, scaled: bool) -> nn.Module:
    """Copy a layer with only its kept channels; tensors of a layer that loses nothing are copied bit for bit."""
    module = copy.deepcopy(layer.module)
    outputs, inputs = keep[layer.outputs], keep[layer.inputs]
    if bool(outputs.all()) and bool(inputs.all()):
        return module
    if layer.kind is Kind.NORM:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.ndim:
                _set(module, name, cut(tensor, 0, outputs))
        _resize(module, ("num_features", "num_parameters"), int(outputs.sum()))
        return module
    weight = module.get_parameter("weight")
    kernel: Tensor = weight
    for axis, classes in zip(axes(layer), channel_lines(layer), strict=True):
        if axis is not None:
            kernel = cut(kernel, axis, keep[classes])
    _set(module, "weight", at_uncut_norm(kernel, weight) if scaled else kernel)
    if isinstance(module.bias, Tensor):
        _set(module, "bias", cut(module.bias, 0, outputs))
    _resize(module, ("in_channels", "in_features"), int(inputs.sum()))
    _resize(module, ("out_channels", "out_features"), int(outputs.sum()))
    if layer.is_depthwise:
        _resize(module, ("groups",), int(inputs.sum()))
    return module


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(tensor.detach().clone(), requires_grad=old.requires_grad))
    else:
        setattr(module, name, tensor.detach().clone())


def _resize(module: nn.Module, names: tuple[str, ...], size: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, size)


def _restore_inplace(module: fx.GraphModule, graph: ChannelGraph) -> None:
    """Let activations write in place again where the original's do and only they read the result of a layer."""
    original = dict(graph.network.named_modules())
    fresh = (Kind.CONV, Kind.LINEAR, Kind.NORM)
    calls: dict[str, bool] = {}
    for node in graph.trace.graph.nodes:
        if node.op == "call_module" and getattr(original.get(str(node.target)), "inplace", False):
            value = node.all_input_nodes[0]
            alone = len(value.users) == 1 and graph.trace.kinds[value.name] in fresh
            calls[str(node.target)] = calls.get(str(node.target), True) and alone
    for path, alone in calls.items():
        vars(module.get_submodule(path))["inplace"] = alone
