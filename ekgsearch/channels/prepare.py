"""The tensors that a sub-network runs with: masked kernels, cut to the channels that are computed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ekgsearch.channels.arithmetic import Arithmetic
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.kernels import axes, channel_lines, cut
from ekgsearch.channels.labels import ids_of
from ekgsearch.channels.masks import masked_kernel
from ekgsearch.channels.members import Layer, Site
from ekgsearch.channels.movement import plan
from ekgsearch.channels.operations import Kind
from ekgsearch.records import Subnetwork

_PROBES = 3  # random sub-networks on which every movement must stay as it is before a channel group is sliced
_STATISTICS = ("bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A sub-network, ready to run.

    Attributes:
        subnetwork: the sub-network.
        tensors: weights by layer path, other tensors of layers by path and name, where they differ from the network's.
        masks: masks of feature maps by site name, over the channels that are computed; sites without one are absent.
        present: which channels of a site are computed, bool by site name; sites that are computed whole are absent.
    """

    subnetwork: Subnetwork
    tensors: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


class Preparation:
    """Prepares sub-networks of a network.

    Args:
        graph: analysed network; its current weights are read when a sub-network is prepared.
        below: share of kept channels in 0..1 from which down a channel group is sliced.
        arithmetic: numbers that kernels and masks are given in.
    """

    def __init__(self, graph: ChannelGraph, below: float, arithmetic: Arithmetic) -> None:
        self.graph = graph
        self._below = below
        self._arithmetic = arithmetic
        self._sites: dict[str, Site] = {site.node: site for site in graph.sites}
        self._layers = {
            group.name: frozenset(
                member.layer
                for member in (*group.producers, *group.depthwise, *group.consumers, *group.norms)
                if member.layer in graph.layers
            )
            for group in graph.groups
        }

    @cached_property
    def sliceable(self) -> frozenset[str]:
        """Names of the channel groups that can be sliced: all that pass through them works on fewer channels."""
        possible = {
            group.name
            for group in self.graph.groups
            if all(
                norm.layer not in self.graph.layers or self.graph.layers[norm.layer].can_run_cut for norm in group.norms
            )
        }
        generator = torch.Generator().manual_seed(0)
        for probe in range(_PROBES + 1):
            while possible and (rearranged := self._rearranged(possible, None if probe == 0 else generator)):
                possible -= rearranged
        return frozenset(possible)

    def whole(self, sub: Subnetwork) -> Prepared:
        """Compute the tensors and masks of a sub-network.

        Raises:
            NetworkError: the sub-network does not fit the network.
        """
        self.graph.validate(sub)
        self.graph.trace.bind()
        return self._prepare(sub, self.graph.layers, self._sites)

    def narrowed(self, current: Prepared, sub: Subnetwork, group: str) -> Prepared:
        """Prepare a sub-network that differs from a prepared one in one channel group only."""
        sites = self.graph.group(group).sites
        changed = self._prepare(sub, self._layers[group], sites)
        kept_masks = {name: mask for name, mask in current.masks.items() if name not in sites}
        kept_present = {name: present for name, present in current.present.items() if name not in sites}
        return Prepared(
            sub,
            {**current.tensors, **changed.tensors},
            {**kept_masks, **changed.masks},
            {**kept_present, **changed.present},
        )

    def _prepare(self, sub: Subnetwork, paths: Iterable[str], sites: Iterable[str]) -> Prepared:
        keep = self.graph.kept_classes(sub)
        present = torch.ones_like(keep)
        for name, kept in sub.kept:
            if len(kept) <= self._below * self.graph.group(name).size and name in self.sliceable:
                classes = self.graph.group_classes[name]
                present[classes] = keep[classes]
        like = next(self.graph.network.parameters())
        tensors: dict[str, Tensor] = {}
        for path in paths:
            layer = self.graph.layers[path]
            if layer.kind is Kind.NORM:
                tensors.update(_cut_norm(path, layer, present[layer.outputs]))
            else:
                tensors.update(self._kernel(path, layer, keep, present))
        masks, computed = {}, {}
        for name in sites:
            classes = self._sites[name].classes
            mask = keep[classes][present[classes]]
            if not bool(mask.all()):
                masks[name] = self._arithmetic.mask(mask.to(like.device), like.dtype)
            if not bool(present[classes].all()):
                computed[name] = present[classes]
        return Prepared(sub, tensors, masks, computed)

    def _kernel(self, path: str, layer: Layer, keep: Tensor, present: Tensor) -> dict[str, Tensor]:
        """Kernel and bias of one layer: masked, cut to the channels that are computed."""
        kernel = layer.weight
        bias = layer.module.bias.detach() if isinstance(layer.module.bias, Tensor) else None
        if not bool(keep[layer.outputs].all()) or not bool(keep[layer.inputs].all()):
            kernel = masked_kernel(layer, keep, True)
            for axis, classes in zip(axes(layer), channel_lines(layer), strict=True):
                if axis is not None and not bool(present[classes].all()):
                    kernel = cut(kernel, axis, present[classes])
            bias = None if bias is None else cut(bias, 0, present[layer.outputs])
        found = {path: self._arithmetic.kernel(kernel)}
        if bias is not None:
            found[f"{path}.bias"] = self._arithmetic.kernel(bias)
        return found

    def _rearranged(self, possible: set[str], generator: torch.Generator | None) -> set[str]:
        """Channel groups with a movement that needs another form once these groups are cut.

        They are cut at random, or without a generator to one channel each, which a bare `squeeze` would drop.
        """
        graph = self.graph
        keep = torch.ones(int(graph.classes.max()) + 1, dtype=torch.bool)
        for name in sorted(possible):
            classes = graph.group_classes[name]
            keep[classes] = False
            if generator is None:
                keep[classes[:1]] = True
            else:
                count = int(torch.randint(1, len(classes) + 1, (), generator=generator))
                keep[classes[torch.randperm(len(classes), generator=generator)[:count]]] = True
        changes = plan(graph.labelling, keep[graph.classes])
        nodes = [node for node in graph.trace.graph.nodes if node.name in changes]
        moved = {
            int(graph.classes[channel])
            for node in nodes
            for other in (node, *node.all_input_nodes)
            for ids in ids_of(graph.labelling.labels[other.name])
            for channel in ids.tolist()
        }
        return {name for name in possible if not moved.isdisjoint(graph.group_classes[name].tolist())}


def _cut_norm(path: str, layer: Layer, present: Tensor) -> dict[str, Tensor]:
    module, found = layer.module, {}
    for name in ("weight", *_STATISTICS):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            key = path if name == "weight" else f"{path}.{name}"
            found[key] = tensor.detach() if bool(present.all()) else cut(tensor.detach(), 0, present)
    return found
