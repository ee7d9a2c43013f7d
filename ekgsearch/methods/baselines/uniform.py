"""The baseline every search must beat: all channel groups narrowed by the same share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.one_shot import OneShot
from ekgsearch.records import Subnetwork


class Uniform(OneShot):
    """Cuts all channel groups to the same share."""

    def cut(self) -> tuple[Subnetwork, dict[str, Any]]:
        """The sub-network; nothing else is recorded."""
        materials = self.materials
        return uniform_width(materials.open_graph(), materials.budget, materials.groups), {}


def uniform_width(graph: ChannelGraph, budget: Budget, groups: Sequence[ChannelGroup] | None = None) -> Subnetwork:
    """Return the widest network that keeps the same share of every channel group and meets the budget.

    Inside a channel group the filters with the largest L1 norm, summed over its producers, are kept. The share is
    found by bisection over kept numbers, so the result is the widest at a resolution of 1e-4.

    Args:
        graph: the network.
        budget: what to meet.
        groups: channel groups that may be cut; None for all.
    """
    chosen = graph.groups if groups is None else groups
    orders = {group.name: _by_norm(graph.network, group) for group in chosen}
    full = {name: list(kept) for name, kept in graph.full().kept}

    def at(share: float) -> Subnetwork:
        cut = {group.name: orders[group.name][: max(1, int(group.size * share))] for group in chosen}
        return Subnetwork.of(full | cut)

    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        costs = cost(graph, at(middle), budget.counter)
        low, high = (middle, high) if budget.is_met(costs.macs, costs.params) else (low, middle)
    return at(low)


def _by_norm(network: nn.Module, group: ChannelGroup) -> list[int]:
    """Channels of a group by the summed L1 norm of their filters, largest first, ties to the lower index."""
    norms = torch.zeros(group.size, dtype=torch.float64)
    for producer in group.producers:
        layer = network.get_submodule(producer.layer)
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        if isinstance(layer, nn.ConvTranspose2d):
            weight = weight.transpose(0, 1)
        per_filter = weight.detach().double().abs().flatten(1).sum(1).cpu()
        norms += per_filter[torch.tensor(producer.positions)].sum(1)
    return sorted(range(group.size), key=lambda channel: (-float(norms[channel]), channel))
