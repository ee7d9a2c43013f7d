"""Find the channel groups of a network: channels that pass through the same places are cut together."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from ekgsearch.channels.labelling import Labelling, LayerChannels
from ekgsearch.channels.labels import Channels, parts_of
from ekgsearch.channels.members import ChannelGroup, Layer, Member, Site
from ekgsearch.channels.operations import JOINS, Kind, is_depthwise, operation_name
from ekgsearch.channels.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """Channel groups and all that belongs to them.

    Attributes:
        groups: channel groups that can be cut, in execution order of their first producer.
        frozen: channel groups that cannot, each with the reason.
        layers: layers by path, in execution order.
        auxiliary: layers that run in training only, by path.
        sites: in execution order.
        classes: int64 coupling class of each channel id.
        group_classes: classes of the channels of each cuttable group, by group name.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[ChannelGroup, ...]
    layers: dict[str, Layer]
    auxiliary: dict[str, Layer]
    sites: tuple[Site, ...]
    classes: Tensor
    group_classes: dict[str, Tensor]


def find_groups(traced: Trace, labelling: Labelling) -> Grouping:
    """Group channels that pass through the same places: the same layers at the same axes, and the same values.

    So every value of the network holds whole channel groups, and none can lose all its channels.
    """
    return _Builder(traced, labelling).grouping()


class _Builder:
    """Turns coupling classes into channel groups."""

    def __init__(self, traced: Trace, labelling: Labelling) -> None:
        self.trace = traced
        self.labelling = labelling
        self.classes = labelling.sets.classes()
        self.count = int(self.classes.max()) + 1
        self.nodes = {node.name: node for node in traced.graph.nodes}
        self.order = {node.name: index for index, node in enumerate(traced.graph.nodes)}
        self.reasons = self._reasons()

    def grouping(self) -> Grouping:
        """Assemble the result."""
        members, starts = self._members()
        sites = self._site_classes()
        named = self._named(starts)
        group_of = np.full(self.count, -1)
        for number, (_, classes) in enumerate(named):
            group_of[classes] = number
        groups: list[ChannelGroup] = []
        for name, classes in named:
            roles = {role: _member_list(by_layer, classes) for role, by_layer in members.items()}
            reasons = dict.fromkeys(reason for index in classes for reason in self.reasons.get(index, ()))
            if not roles["producers"] and not reasons:
                reasons = {"no layer makes these channels": None}
            inside = set(classes)
            places = () if reasons else tuple(node for node, found in sites.items() if inside & set(found.tolist()))
            groups.append(ChannelGroup(name, len(classes), **roles, sites=places, frozen="; ".join(reasons)))
        cuttable = tuple(group for group in groups if not group.frozen)
        by_name = {name: torch.tensor(classes) for name, classes in named}
        return Grouping(
            groups=cuttable,
            frozen=tuple(group for group in groups if group.frozen),
            layers=self._layers(self.labelling.evaluation_layers),
            auxiliary=self._layers(self.labelling.training_layers),
            sites=tuple(self._sites(sites, cuttable)),
            classes=self.classes,
            group_classes={group.name: by_name[group.name] for group in cuttable},
        )

    def _reasons(self) -> dict[int, list[str]]:
        reasons: dict[int, list[str]] = defaultdict(list)
        for ids, reason in self.labelling.sets.reasons:
            for index in np.unique(self.classes[ids].numpy()).tolist():
                if reason not in reasons[index]:
                    reasons[index].append(reason)
        return reasons

    def _roles(self) -> Iterator[tuple[str, LayerChannels, Tensor]]:
        """List what each layer does to which channels, each layer once."""
        seen: set[str] = set()
        for layer in self.labelling.layers:
            if layer.path in seen:
                continue
            seen.add(layer.path)
            if layer.kind is Kind.NORM:
                yield "norms", layer, layer.outputs
            elif is_depthwise(self.trace.modules[layer.path]):
                yield "depthwise", layer, layer.outputs
            else:
                yield "producers", layer, layer.outputs
                yield "consumers", layer, layer.inputs

    def _members(self) -> tuple[dict[str, dict[str, dict[int, list[int]]]], dict[int, tuple[int, int]]]:
        """Positions of each class by role and layer; and where each class starts: (node index, position)."""
        members: dict[str, dict[str, dict[int, list[int]]]] = {
            role: {} for role in ("producers", "norms", "depthwise", "consumers")
        }
        starts: dict[int, tuple[int, int]] = {}
        for role, layer, ids in self._roles():
            positions: dict[int, list[int]] = defaultdict(list)
            for position, index in enumerate(self.classes[ids].tolist()):
                positions[index].append(position)
                if role == "producers":
                    starts.setdefault(index, (self.order[layer.node], position))
            members[role][layer.path] = dict(positions)
        return members, starts

    def _named(self, starts: dict[int, tuple[int, int]]) -> list[tuple[str, list[int]]]:
        """Split the classes into groups that pass through the same places; name and order the groups."""
        keys, first = self._signatures(), self._first_nodes()
        groups: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(first < len(self.nodes)).tolist():
            groups[int(keys[index])].append(index)
        where = {index: starts.get(index, (int(first[index]), 0)) for group in groups.values() for index in group}
        ordered = sorted((sorted(group, key=where.__getitem__) for group in groups.values()), key=lambda g: where[g[0]])
        nodes = list(self.nodes.values())
        named: list[tuple[str, list[int]]] = []
        used: dict[str, int] = defaultdict(int)
        for group in ordered:
            node = nodes[where[group[0]][0]]
            name = str(node.target) if node.op == "call_module" else node.name
            used[name] += 1
            named.append((name if used[name] == 1 else f"{name}:{used[name]}", group))
        return named

    def _first_nodes(self) -> np.ndarray:
        """Index of the first node whose value holds each class; the number of nodes where none does."""
        first = np.full(self.count, len(self.nodes))
        for name, label in reversed(self.labelling.labels.items()):
            for part in parts_of(label):
                first[self.classes[part.all_ids].numpy()] = self.order[name]
        return first

    def _signatures(self) -> np.ndarray:
        """Number the places that each class passes through: layers with multiplicity, and every value."""
        rows = {self._counts(ids) for _, _, ids in self._roles()}
        for label in self.labelling.labels.values():
            for part in parts_of(label):
                rows.add(self._counts(torch.from_numpy(np.unique(part.all_ids.numpy()))))
        frozen = np.zeros(self.count, dtype=np.int32)
        frozen[list(self.reasons)] = 1
        rows.add(frozen.tobytes())
        table = np.stack([np.frombuffer(row, dtype=np.int32) for row in sorted(rows)], axis=1)
        packed = (
            np.ascontiguousarray(table).view(np.dtype((np.void, table.dtype.itemsize * table.shape[1]))).reshape(-1)
        )
        return np.unique(packed, return_inverse=True)[1].reshape(-1)

    def _counts(self, ids: Tensor) -> bytes:
        return np.bincount(self.classes[ids].numpy(), minlength=self.count).astype(np.int32).tobytes()

    def _layers(self, calls: Iterable[LayerChannels]) -> dict[str, Layer]:
        layers: dict[str, Layer] = {}
        for call in calls:
            module, node = self.trace.modules[call.path], self.nodes[call.node]
            made = self._per_channel(node, call.kind)
            read = self._per_channel(node.all_input_nodes[0], call.kind)
            applied = read if isinstance(module, nn.ConvTranspose2d) else made
            if call.path in layers:
                applied, made = applied + layers[call.path].positions, made + layers[call.path].out_positions
            inputs, outputs = self.classes[call.inputs], self.classes[call.outputs]
            layers[call.path] = Layer(call.path, call.kind, module, inputs, outputs, applied, made)
        return layers

    def _per_channel(self, node: fx.Node, kind: Kind) -> int:
        """Count the elements of one channel of one image in a layer's input or output."""
        shape = self.trace.shapes[node.name]
        return math.prod(shape) // (shape[0] * (shape[-1] if kind is Kind.LINEAR else shape[1]))

    def _site_classes(self) -> dict[str, Tensor]:
        """Find the values that consumers read, behind whatever only moves or averages them."""
        found: set[fx.Node] = set()
        for call in self.labelling.evaluation_layers:
            if call.kind is not Kind.NORM:
                found |= self._origins(self.nodes[call.node].all_input_nodes[0])
        sites: dict[str, Tensor] = {}
        for node in sorted(found, key=lambda node: self.order[node.name]):
            label = self.labelling.labels[node.name]
            if isinstance(label, Channels) and label.axis is not None:
                sites[node.name] = self.classes[label.vector]
        return sites

    def _origins(self, node: fx.Node) -> set[fx.Node]:
        kind = self.trace.kinds[node.name]
        if kind not in (Kind.MOVE, Kind.IDENTITY, Kind.AVERAGE, Kind.REDUCE) or not node.all_input_nodes:
            return {node}
        inputs = node.all_input_nodes if operation_name(node) in JOINS else node.all_input_nodes[:1]
        return {origin for other in inputs for origin in self._origins(other)}

    def _sites(self, sites: dict[str, Tensor], groups: tuple[ChannelGroup, ...]) -> Iterator[Site]:
        for name, classes in sites.items():
            label = self.labelling.labels[name]
            inside = tuple(group.name for group in groups if name in group.sites)
            if inside:
                yield Site(name, label.axis, label.ids.ndim, classes, inside)


def _member_list(by_layer: dict[str, dict[int, list[int]]], classes: list[int]) -> tuple[Member, ...]:
    """Collect the positions of a group's channels in each layer that has them."""
    return tuple(
        Member(path, tuple(tuple(positions[index]) for index in classes))
        for path, positions in by_layer.items()
        if classes[0] in positions
    )
