"""Weights that the fine-tuning of exemplars starts from (EPruner, arXiv 2101.07985, sec. 3.4, and its program)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.kernels import axes
from ekgsearch.channels.members import ChannelGroup, Layer, Member
from ekgsearch.channels.operations import Kind
from ekgsearch.channels.slim import slim
from ekgsearch.methods.epruner.section import Initialisation, Norms
from ekgsearch.methods.fresh import start_afresh
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.seeds import sub_seed


def initialised(
    graph: ChannelGraph,
    subnetwork: Subnetwork,
    groups: Sequence[ChannelGroup],
    initialisation: Initialisation,
    norms: Norms,
    seed: int,
) -> nn.Module:
    """Build the slim network with the weights that its fine-tuning starts from; no kernel is scaled.

    Args:
        graph: analysed network; its weights are changed.
        subnetwork: channels that stay.
        groups: channel groups that are cut.
        initialisation: what becomes of kernels.
        norms: what becomes of norms and biases behind cut kernels, and of linear layers that they feed.
        seed: of random numbers.
    """
    if initialisation == "random":
        network = slim(graph, subnetwork, preserve_norm=False)
        start_afresh(network.modules(), seed)
        return network
    cut = [group for group in groups if len(subnetwork[group.name]) < group.size]
    with torch.no_grad():
        if initialisation == "random_projection":
            for number, layer in enumerate(_readers(graph, subnetwork)):
                _project(graph, layer, subnetwork, sub_seed(seed, f"projection {number}"))
        if norms == "reset":
            _reset(graph, cut, seed)
    return slim(graph, subnetwork, preserve_norm=False)


def _reset(graph: ChannelGraph, cut: Sequence[ChannelGroup], seed: int) -> None:
    """Let norms behind cut kernels, their biases and the linear layers that they feed start afresh."""
    fed: dict[str, nn.Module] = {}
    for group in cut:
        for member in group.norms:
            _reset_norm(graph.network.get_submodule(member.layer), member)
        for member in group.producers:
            bias = graph.network.get_submodule(member.layer).bias
            if isinstance(bias, Tensor):
                bias[_flat(member)] = 0
        for member in group.consumers:
            if isinstance(module := graph.network.get_submodule(member.layer), nn.Linear):
                fed[member.layer] = module
    start_afresh(fed.values(), seed)


def _reset_norm(module: nn.Module, member: Member) -> None:
    """A norm as it was before training, at the channels of one group."""
    if not isinstance(module, _BatchNorm):
        return
    places = _flat(member)
    for values, fresh in ((module.weight, 1), (module.bias, 0), (module.running_mean, 0), (module.running_var, 1)):
        if values is not None:
            values[places] = fresh


def _flat(member: Member) -> Tensor:
    return torch.tensor([place for places in member.positions for place in places])


def _readers(graph: ChannelGraph, subnetwork: Subnetwork) -> list[Layer]:
    """Layers whose kernels lose inputs, in order of their names."""
    keep = graph.kept_classes(subnetwork)
    return [
        layer
        for _, layer in sorted(graph.layers.items())
        if layer.kind is not Kind.NORM and not layer.is_depthwise and not bool(keep[layer.inputs].all())
    ]


def _project(graph: ChannelGraph, layer: Layer, subnetwork: Subnetwork, seed: int) -> None:
    """Replace the inputs of a kernel that stay by a sparse random projection of all of them.

    Every filter, flattened to d numbers, is multiplied by a random matrix (d, n) with n numbers of the cut filter; a
    share 1 / sqrt(d) of its entries is +-sqrt(sqrt(d) / n), the others are 0 (Li, Hastie and Church 2006). The paper's
    program draws it without a seed.
    """
    output_axis, input_axis = axes(layer)
    assert output_axis is not None, "a depthwise kernel is not projected"
    assert input_axis is not None, "a depthwise kernel is not projected"
    kept = graph.kept_classes(subnetwork)[layer.inputs]
    kernels = layer.weight.movedim((output_axis, input_axis), (0, 1))
    if kernels.shape[1] != len(kept):  # a grouped convolution, all of whose groups lose the same inputs
        kept = kept[: kernels.shape[1]]
    cut_shape = kernels[:, kept].shape
    rows = kernels.flatten(1)
    inputs, outputs = rows.shape[1], math.prod(cut_shape[1:])
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(inputs, outputs, generator=generator, dtype=torch.float64)
    density, size = 1 / math.sqrt(inputs), math.sqrt(math.sqrt(inputs) / outputs)
    matrix = size * ((draws < density / 2).double() - ((draws >= density / 2) & (draws < density)).double())
    kernels[:, kept] = (rows.double().cpu() @ matrix).view(cut_shape).to(kernels)
