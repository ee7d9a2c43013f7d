"""The sliced network: what the masked network computes, on kept channels only and shared between candidates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.groups import parts_of
from ekgsearch.channels.kernels import axes, channel_lines, cut
from ekgsearch.channels.masks import masked_kernel
from ekgsearch.channels.members import Layer, Site
from ekgsearch.channels.movement import plan
from ekgsearch.channels.operations import Kind
from ekgsearch.records import NormMode, Subnetwork

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


class SlicedNetwork:
    """Evaluates sub-networks fast: removed channels are left out, and candidates share what comes before them.

    A channel group that keeps at most the share `below` of its channels is sliced: its layers, norms and feature maps
    hold the kept channels only, with the very kernels that the masked network uses. The others are masked. In real
    arithmetic the result is that of `MaskedNetwork`; in floating point sums over input channels are grouped otherwise.
    With `below` 0 nothing is sliced, and the result is that of the masked network bit for bit.

    Args:
        graph: analysed network; its current weights are read when a sub-network is prepared.
        below: share of kept channels in 0..1 from which down a channel group is sliced.
    """

    def __init__(self, graph: ChannelGraph, below: float) -> None:
        self.graph = graph
        self._below = below
        self._program = graph.trace.program
        self._sites: dict[str, Site] = {site.node: site for site in graph.sites}
        steps = {step.name: index for index, step in enumerate(self._program.steps)}
        self._layers: dict[str, frozenset[str]] = {}
        self._first: dict[str, int] = {}
        for group in graph.groups:
            members = (*group.producers, *group.depthwise, *group.consumers)
            read = {member.layer for member in members}
            self._layers[group.name] = frozenset(read | {member.layer for member in group.norms})
            calls = [call.node for call in graph.labelling.layers if call.path in read]
            self._first[group.name] = min(steps[node] for node in (*calls, *group.sites))

    @cached_property
    def sliceable(self) -> frozenset[str]:
        """Names of the channel groups that can be sliced: all that pass through them works on fewer channels."""
        possible = {
            group.name
            for group in self.graph.groups
            if all(self.graph.layers[norm.layer].can_run_cut for norm in group.norms)
        }
        generator = torch.Generator().manual_seed(0)
        for _ in range(_PROBES):
            while possible and (rearranged := self._rearranged(possible, generator)):
                possible -= rearranged
        return frozenset(possible)

    def first_step(self, group: str) -> int:
        """Index of the first step whose result depends on which channels a channel group keeps."""
        self.graph.group(group)
        return self._first[group]

    def prepare(self, sub: Subnetwork) -> Prepared:
        """Compute the tensors and masks of a sub-network.

        Raises:
            NetworkError: the sub-network does not fit the network.
        """
        self.graph.validate(sub)
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

    @torch.no_grad()
    def forward(self, images: Tensor, prepared: Prepared, *, norm_mode: NormMode = "batch") -> Any:
        """Run a sub-network on normalised float images (B, 3, H, W); logits (B, classes)."""
        return self._program.output(self._finish({self._program.input: images}, prepared, norm_mode, 0))

    @torch.no_grad()
    def branches(
        self,
        images: Tensor,
        current: Prepared,
        candidates: Sequence[tuple[str, Prepared]],
        *,
        norm_mode: NormMode = "batch",
    ) -> list[Any]:
        """Run candidates that differ from the current sub-network in one channel group each.

        The current sub-network is walked through once; each candidate branches off at the first step that its channel
        group touches. Nothing else is kept in memory, and the bits are those of `forward`.

        Args:
            images: normalised float images (B, 3, H, W).
            current: the sub-network that they share.
            candidates: pairs (channel group that differs, candidate from `narrowed`).
            norm_mode: statistics of the batch, or running ones.

        Returns:
            What the network returns for each candidate, in their order.
        """
        waiting: dict[int, list[int]] = {}
        for position, (group, _) in enumerate(candidates):
            waiting.setdefault(self._first[group], []).append(position)
        outputs: dict[int, Any] = {}
        values: dict[str, Any] = {self._program.input: images}
        for index in range(max(waiting, default=-1) + 1):
            for position in waiting.get(index, ()):
                done = self._finish(dict(values), candidates[position][1], norm_mode, index)
                outputs[position] = self._program.output(done)
            self._step(values, current, norm_mode, index, 0)
        return [outputs[position] for position in range(len(candidates))]

    def scores(
        self, images: Tensor, loss_fn: Callable[[Any], Tensor], prepared: Prepared, *, norm_mode: NormMode = "batch"
    ) -> tuple[Any, dict[str, Tensor]]:
        """Compute the importance of every channel of a sub-network on one batch; see `MaskedNetwork.scores`.

        Args:
            images: normalised float images (B, 3, H, W), one whole batch.
            loss_fn: maps the network's output to a scalar L.
            prepared: the sub-network.
            norm_mode: statistics of the batch, or running ones.

        Returns:
            The network's output, detached, and by channel group a float64 vector of non-negative scores on the CPU.
        """
        totals = torch.zeros(int(self.graph.classes.max()) + 1, dtype=torch.float64, device=images.device)
        leaves: list[Tensor] = []
        handles = []

        def add(site: Site, value: Tensor, gradient: Tensor) -> None:
            axes_but_one = [axis for axis in range(value.ndim) if axis != site.axis]
            products = (gradient * value).sum(axes_but_one)
            present = prepared.present.get(site.node)
            classes = site.classes if present is None else site.classes[present]
            totals.add_(torch.zeros_like(totals).index_add_(0, classes.to(value.device), products.double()).abs_())

        with torch.enable_grad():
            values: dict[str, Any] = {self._program.input: images}
            for index, step in enumerate(self._program.steps):
                self._step(values, prepared, norm_mode, index, index + 1)
                site = self._sites.get(step.name)
                if site is not None:
                    value = values[step.name]
                    if not value.requires_grad:
                        value = values[step.name] = value.detach().requires_grad_()
                        leaves.append(value)
                    handles.append(value.register_hook(partial(add, site, value.detach())))
            output = self._program.output(values)
            del values
            if leaves:
                torch.autograd.grad(loss_fn(output), leaves, allow_unused=True)
        for handle in handles:
            handle.remove()
        found = totals.cpu()
        return _detached(output), {name: found[classes] for name, classes in self.graph.group_classes.items()}

    def _finish(self, values: dict[str, Any], prepared: Prepared, mode: NormMode, start: int) -> dict[str, Any]:
        for index in range(start, len(self._program.steps)):
            self._step(values, prepared, mode, index, start)
        return values

    def _step(self, values: dict[str, Any], prepared: Prepared, mode: NormMode, index: int, start: int) -> None:
        """Run one step; memory made since step `start`, which nothing else reads, may be written again."""
        program = self._program
        step = program.steps[index]
        may_overwrite = step.overwrites and program.index.get(step.overwrites, -1) >= start
        value = (step.call_inplace if may_overwrite else step.call)(values, prepared.tensors, mode)
        mask = prepared.masks.get(step.name)
        if mask is not None:
            shaped = mask.view(self._sites[step.name].shape())
            value = value.mul_(shaped) if step.is_fresh and start <= index else value * shaped
        values[step.name] = value
        for name in step.inputs:
            if program.last_use[name] == index and name != program.input:
                values.pop(name, None)

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
            tensors.update(_tensors(path, self.graph.layers[path], keep, present))
        masks, computed = {}, {}
        for name in sites:
            classes = self._sites[name].classes
            mask = keep[classes][present[classes]]
            if not bool(mask.all()):
                masks[name] = mask.to(device=like.device, dtype=like.dtype)
            if not bool(present[classes].all()):
                computed[name] = present[classes]
        return Prepared(sub, tensors, masks, computed)

    def _rearranged(self, possible: set[str], generator: torch.Generator) -> set[str]:
        """Channel groups with a movement that needs another form once these groups are cut at random."""
        graph = self.graph
        keep = torch.ones(int(graph.classes.max()) + 1, dtype=torch.bool)
        for name in sorted(possible):
            classes = graph.group_classes[name]
            count = int(torch.randint(1, len(classes) + 1, (), generator=generator))
            keep[classes] = False
            keep[classes[torch.randperm(len(classes), generator=generator)[:count]]] = True
        changes = plan(graph.trace, graph.labelling.labels, keep[graph.classes])
        nodes = [node for node in graph.trace.graph.nodes if node.name in changes]
        moved = {
            int(graph.classes[channel])
            for node in nodes
            for other in (node, *node.all_input_nodes)
            for part in parts_of(graph.labelling.labels[other.name])
            for channel in part.all_ids.tolist()
        }
        return {name for name in possible if not moved.isdisjoint(graph.group_classes[name].tolist())}


def _tensors(path: str, layer: Layer, keep: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Tensors of one layer that differ from its own: a masked kernel, cut to the channels that are computed."""
    outputs, inputs = keep[layer.outputs], keep[layer.inputs]
    if layer.kind is Kind.NORM:
        return _cut_norm(path, layer, present[layer.outputs])
    if bool(outputs.all()) and bool(inputs.all()):
        return {path: layer.module.get_parameter("weight").detach()}
    kernel = masked_kernel(layer, keep, True)
    for axis, classes in zip(axes(layer), channel_lines(layer), strict=True):
        if axis is not None and not bool(present[classes].all()):
            kernel = cut(kernel, axis, present[classes])
    bias = layer.module.bias
    found = {path: kernel}
    if isinstance(bias, Tensor):
        found[f"{path}.bias"] = cut(bias.detach(), 0, present[layer.outputs])
    return found


def _cut_norm(path: str, layer: Layer, present: Tensor) -> dict[str, Tensor]:
    module, found = layer.module, {}
    for name in ("weight", *_STATISTICS):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            key = path if name == "weight" else f"{path}.{name}"
            found[key] = tensor.detach() if bool(present.all()) else cut(tensor.detach(), 0, present)
    return found


def _detached(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.detach, output)
