"""The slim network: a sub-network with really smaller layers."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.kernels import at_uncut_norm, axes, channel_lines, cut
from ekgsearch.channels.members import Layer
from ekgsearch.channels.movement import Gather, Resize, plan
from ekgsearch.channels.operations import Kind
from ekgsearch.channels.return_early import is_kept, return_before
from ekgsearch.channels.state_names import follow_names
from ekgsearch.records import Subnetwork

CUTS = "ekgsearch.cuts"
"""Entry of a slim network's `meta` that says how it was made."""


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
    graph.trace.bind()
    network = _Slimmer(graph, sub, preserve_norm).network()
    network.meta[CUTS] = (*cuts_of(graph.network), (graph.input_shape, sub))
    return network


def cuts_of(network: nn.Module) -> tuple[tuple[tuple[int, int, int], Subnetwork], ...]:
    """What was cut from a network, one cut after the other: the shape of an image, and what was kept."""
    found: tuple[tuple[tuple[int, int, int], Subnetwork], ...] = getattr(network, "meta", {}).get(CUTS, ())
    return found


class _Slimmer:
    """Builds one slim network."""

    def __init__(self, graph: ChannelGraph, sub: Subnetwork, preserve_norm: bool) -> None:
        self.graph = graph
        self.trace = graph.trace
        self.keep = graph.kept_classes(sub)
        self.changes = plan(graph.labelling, self.keep[graph.classes])
        self.device = next(graph.network.parameters()).device
        self.memo = _detached_tensors(graph.trace.modules.values())
        layers = graph.auxiliary | graph.layers
        self.modules = {
            path: _cut_layer(layers[path], self.keep, preserve_norm, self.memo)
            if path in layers
            else copy.deepcopy(module, self.memo)
            for path, module in graph.trace.modules.items()
        }
        self.parts: dict[str, Any] = {}
        self.renamed: dict[str, str] = {}
        self.new = fx.Graph()
        self.ends: fx.Node
        self.copies: dict[fx.Node, fx.Node] = {}
        self.by_name = {node.name: node for node in graph.trace.graph.nodes}

    def network(self) -> fx.GraphModule:
        """Copy the graph node by node, and give it the parts that it calls and reads."""
        for node in self.trace.graph.nodes:
            if node.op == "output" and self.trace.auxiliary.nodes:
                self.new.output(fx.node.map_arg(self.trace.auxiliary.output, self.copies.__getitem__))
                return_before(self.new, self.ends, fx.node.map_arg(node.args[0], self.copies.__getitem__))
            else:
                self.copies[node] = self._copy(node)
            if node.name not in self.trace.auxiliary.nodes and node.op != "output":
                self.ends = self.copies[node]
        self.new.eliminate_dead_code(is_impure_node=is_kept)
        self.new.lint()
        used = {str(node.target) for node in self.new.nodes if node.op in ("call_module", "get_attr")}
        parts = {path: part for path, part in self.parts.items() if path in used}
        module = fx.GraphModule(parts, self.new, "SlimNetwork")
        _restore_inplace(module, self.graph)
        follow_names(module, self.graph.network, self.renamed)
        module.train(self.graph.network.training)
        return module

    def _copy(self, node: fx.Node) -> fx.Node:
        match self.changes.get(node.name):
            case Gather(source, axis, index):
                value = self.copies[self.by_name[source]]
                if index == tuple(range(index[0], index[0] + len(index))):
                    return self.new.call_function(torch.narrow, (value, axis, index[0], len(index)))
                path = f"_gather_{node.name}"
                self.parts[path] = ChannelGather(axis, torch.tensor(index, device=self.device))
                return self.new.call_module(path, (value,))
            case Resize(target, args):
                first = self.copies[node.all_input_nodes[0]]
                return self.new.call_function(target, (first, *fx.node.map_arg(args, self.copies.__getitem__)))
        path = str(node.target)
        if node.op == "get_attr":
            self.parts.setdefault(path, copy.deepcopy(self.trace.tensor(path), self.memo))
        elif node.op == "call_module":
            names = self.trace.leaves.borrowed.get(path, {})
            if any(target != f"{path}.{name}" for name, target in names.items()):
                return self._function(path, names, self.copies[node.all_input_nodes[0]])
            self.parts[path] = self.modules[path]
        return self.new.node_copy(node, self.copies.__getitem__)

    def _function(self, path: str, names: Mapping[str, str], value: fx.Node) -> fx.Node:
        """Call a functional layer on tensors that have the names they have in the original network."""
        module = self.modules[path]
        if isinstance(module, _BatchNorm):
            return self._norm(path, module, names, value)
        tensors: dict[str, fx.Node] = {}
        for name, target in names.items():
            self.parts[target] = getattr(module, name)
            tensors[name] = self.new.get_attr(target)
        weight, bias = tensors["weight"], tensors.get("bias")
        match module:
            case nn.Conv2d():
                settings = (module.stride, module.padding, module.dilation, module.groups)
                return self.new.call_function(F.conv2d, (value, weight, bias, *settings))
            case nn.ConvTranspose2d():
                shape = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
                return self.new.call_function(F.conv_transpose2d, (value, weight, bias, *shape))
            case nn.Linear():
                return self.new.call_function(F.linear, (value, weight, bias))
        return self.new.call_function(F.prelu, (value, weight))

    def _norm(self, path: str, module: _BatchNorm, names: Mapping[str, str], value: fx.Node) -> fx.Node:
        """Call a batch norm, which a function could not switch to training, as a module; its state has other names."""
        own = f"_norm_{path.replace('.', '_')}"
        if module.num_batches_tracked is None:
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=self.device)
        self.parts[own] = module
        self.renamed.update({f"{own}.{name}": names.get(name, "") for name, _ in module.named_buffers()})
        self.renamed.update({f"{own}.{name}": names[name] for name, _ in module.named_parameters()})
        return self.new.call_module(own, (value,))


def _detached_tensors(modules: Iterable[nn.Module]) -> dict[int, Any]:
    """Memo of a deep copy with the tensors that torch refuses to copy: those that hooks computed with gradients."""
    memo: dict[int, Any] = {}
    for module in modules:
        for part in module.modules():
            computed = [value for value in vars(part).values() if isinstance(value, Tensor) and not value.is_leaf]
            memo.update({id(value): value.detach().clone() for value in computed})
    return memo


def _cut_layer(layer: Layer, keep: Tensor, scaled: bool, memo: dict[int, Any]) -> nn.Module:
    """Copy a layer with only its kept channels; tensors of a layer that loses nothing are copied bit for bit."""
    module: nn.Module = copy.deepcopy(layer.module, memo)
    outputs, inputs = keep[layer.outputs], keep[layer.inputs]
    if bool(outputs.all()) and bool(inputs.all()):
        return module
    if layer.kind is Kind.NORM:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.ndim:
                _set(module, name, cut(tensor, 0, outputs))
        _resize(module, ("num_features", "num_parameters"), int(outputs.sum()))
        return module
    weight = module.weight
    assert isinstance(weight, Tensor)
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
