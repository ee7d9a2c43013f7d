"""The analysed network: its channel groups, and what a sub-network may ask of them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from ekgsearch.channels.groups import find_groups
from ekgsearch.channels.labelling import Labelling
from ekgsearch.channels.labels import parts_of
from ekgsearch.channels.members import ChannelGroup, Layer, Site
from ekgsearch.channels.movement import UncuttableError, plan
from ekgsearch.channels.propagate import propagate
from ekgsearch.channels.trace import Trace, trace
from ekgsearch.errors import NetworkError
from ekgsearch.records import Subnetwork

_log = logging.getLogger(__name__)

_PROBES = 3  # random sub-networks on which every movement must work before its channels count as cuttable


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A network, its channel groups and where they sit.

    Attributes:
        network: the network; its tensors are shared, not copied.
        input_shape: shape (3, H, W) of one image.
        groups: channel groups that can be cut, in execution order of their first producer.
        frozen: channel groups that cannot, each with the reason.
        layers: layers by path, in execution order.
        auxiliary: layers that run in training only, by path.
        sites: in execution order.
        trace: the traced network.
        labelling: channel ids of every value.
        classes: int64 coupling class of each channel id.
        group_classes: classes of the channels of each cuttable group, by group name.
        warnings: what of the network is not as it seems, in words: a forward that is another one in training, costs
            that are not counted.
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[ChannelGroup, ...]
    layers: dict[str, Layer]
    auxiliary: dict[str, Layer]
    sites: tuple[Site, ...]
    trace: Trace
    labelling: Labelling
    classes: Tensor
    group_classes: dict[str, Tensor]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        from ekgsearch.channels.table import table  # which counts costs, and so needs this module

        return table(self)

    @cached_property
    def _by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    def full(self) -> Subnetwork:
        """The sub-network that keeps every channel."""
        return Subnetwork.of({group.name: range(group.size) for group in self.groups})

    def group(self, name: str) -> ChannelGroup:
        """Find a cuttable channel group by name.

        Raises:
            NetworkError: there is none of that name, or its channels are frozen.
        """
        found = self._by_name.get(name)
        if found is not None:
            return found
        reason = next((f"is frozen: {group.frozen}" for group in self.frozen if group.name == name), "is unknown")
        names = ", ".join(list(self._by_name)[:5])
        raise NetworkError(f"channel group {name!r} {reason}; this network has {len(self.groups)}: {names}, ...")

    def validate(self, sub: Subnetwork) -> None:
        """Check that a sub-network fits this network.

        Raises:
            NetworkError: a channel group is unknown, missing, listed twice or empty, or an index is out of range.
        """
        names = sub.names
        for name, kept in sub.kept:
            size = self.group(name).size
            if not kept:
                raise NetworkError(f"channel group {name!r} has 0 kept channels of {size}; keep at least 1")
            if kept[0] < 0 or kept[-1] >= size or any(b <= a for a, b in pairwise(kept)):
                raise NetworkError(
                    f"expected ascending kept channels of {name!r} within 0..{size - 1}, found {kept[:3]}...{kept[-1]}"
                )
        missing = [group.name for group in self.groups if group.name not in set(names)]
        if missing or len(set(names)) != len(names):
            raise NetworkError(
                f"expected each of {len(self.groups)} channel groups once in the sub-network, found {len(names)} "
                f"entries; missing: {missing[:3]}; start from `ChannelGraph.full()`"
            )

    def cut_groups(self, sub: Subnetwork) -> frozenset[str]:
        """Names of the channel groups that lose channels."""
        return frozenset(name for name, kept in sub.kept if len(kept) < self._by_name[name].size)

    def kept_classes(self, sub: Subnetwork) -> Tensor:
        """Tell for each coupling class whether it is kept: bool, one entry per class; frozen ones are kept."""
        keep = torch.ones(int(self.classes.max()) + 1, dtype=torch.bool)
        for name, kept in sub.kept:
            classes = self.group_classes[name]
            if len(kept) < len(classes):
                keep[classes] = False
                keep[classes[list(kept)]] = True
        return keep


def analyse(network: nn.Module, input_shape: tuple[int, int, int]) -> ChannelGraph:
    """Find which channels of a network can be cut, and which only together.

    Nothing is known about the architecture: the network is traced, every channel is followed through it, and channels
    that meet are coupled. Channels that meet an operation which may mix them are frozen, with the reason.

    Args:
        network: module that maps images (B, 3, H, W) to outputs; left as it was, its tensors are shared.
        input_shape: shape (3, H, W) of one image.

    Raises:
        NetworkError: the network cannot be traced.
    """
    traced = trace(network, input_shape)
    labelling = propagate(traced)
    while True:
        found = find_groups(traced, labelling)
        graph = ChannelGraph(
            network=network,
            input_shape=input_shape,
            groups=found.groups,
            frozen=found.frozen,
            layers=found.layers,
            sites=found.sites,
            trace=traced,
            labelling=labelling,
            classes=found.classes,
            group_classes=found.group_classes,
            auxiliary=found.auxiliary,
            warnings=tuple(_warnings(traced)),
        )
        stuck = _stuck(graph)
        if stuck is None:
            break
        for node in [stuck, *stuck.all_input_nodes]:
            for part in parts_of(labelling.labels[node.name]):
                labelling.sets.freeze(part.all_ids, f"node {stuck.name!r} rearranges them in a way that cannot be cut")
    _log.debug("%d channel groups can be cut, %d are frozen", len(graph.groups), len(graph.frozen))
    return graph


def _warnings(traced: Trace) -> Iterator[str]:
    if traced.training_difference and traced.auxiliary.nodes:
        yield (
            f"{traced.training_difference}; the slim network has this in training too, with all the channels that it "
            "makes, and costs are those of evaluation"
        )
    elif traced.training_difference:
        yield (
            f"{traced.training_difference}; sub-networks and the slim network are those of the forward in evaluation, "
            "so this is missing when the slim network is trained"
        )
    if traced.other_macs.uncounted:
        yield (
            f"the multiply-accumulates of {', '.join(sorted(traced.other_macs.uncounted))} are not counted, in the "
            "whole network as in every sub-network: torch's counter does not know these operations"
        )


def _stuck(graph: ChannelGraph) -> fx.Node | None:
    """Find a movement that fails on some sub-network."""
    generator = torch.Generator().manual_seed(0)
    for probe in range(_PROBES + 1):
        keep = torch.ones(int(graph.classes.max()) + 1, dtype=torch.bool)
        for classes in graph.group_classes.values():
            count = 1 if probe == 0 else int(torch.randint(1, len(classes) + 1, (), generator=generator))
            keep[classes] = False
            keep[classes[torch.randperm(len(classes), generator=generator)[:count]]] = True
        try:
            plan(graph.labelling, keep[graph.classes])
        except UncuttableError as error:
            return error.node
    return None
