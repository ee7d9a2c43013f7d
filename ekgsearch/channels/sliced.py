"""The sliced network: what the masked network computes, on kept channels only and shared between candidates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ekgsearch.channels.arithmetic import EXACT, Arithmetic
from ekgsearch.channels.execute import Program
from ekgsearch.channels.fuse import fuse
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import Site
from ekgsearch.channels.prepare import Preparation, Prepared
from ekgsearch.records import NormMode


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """What a sub-network computed on a batch, as far as candidates that branch off it start from it.

    Attributes:
        before: by index of a step that a channel group touches first, the values that this or a later step reads.
    """

    before: Mapping[int, Mapping[str, Any]]

    @property
    def num_bytes(self) -> int:
        """Memory of these values, what they share counted once."""
        tensors = [value for values in self.before.values() for value in values.values() if isinstance(value, Tensor)]
        blocks = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(blocks.values())


class SlicedNetwork:
    """Evaluates sub-networks fast: removed channels are left out, and candidates share what comes before them.

    A channel group that keeps at most the share `below` of its channels is sliced: its layers, norms and feature maps
    hold the kept channels only, with the very kernels that the masked network uses. The others are masked. In real
    arithmetic the result is that of `MaskedNetwork`; in floating point sums over input channels are grouped otherwise.
    With `below` 0 nothing is sliced, and the result is that of the masked network bit for bit.

    Args:
        graph: analysed network; its current weights are read when a sub-network is prepared.
        below: share of kept channels in 0..1 from which down a channel group is sliced.
        arithmetic: numbers that it computes in.
    """

    def __init__(self, graph: ChannelGraph, below: float, arithmetic: Arithmetic = EXACT) -> None:
        self.graph = graph
        self.below = below
        self.preparation = Preparation(graph, below, arithmetic)
        self.arithmetic = arithmetic
        self._sites: dict[str, Site] = {site.node: site for site in graph.sites}
        self._program = fuse(graph.trace, frozenset(self._sites)) if arithmetic.compile else graph.trace.program
        self._first = first_steps(graph, self._program)

    @torch.no_grad()
    def forward(self, images: Tensor, prepared: Prepared, *, norm_mode: NormMode = "batch") -> Any:
        """Run a sub-network on normalised float images (B, 3, H, W); logits (B, classes)."""
        values = {self._program.input: self.arithmetic.images(images)}
        return self._program.output(self._finish(values, prepared, norm_mode, 0))

    @torch.no_grad()
    def branches(
        self,
        images: Tensor,
        current: Prepared,
        candidates: Sequence[tuple[str, Prepared]],
        *,
        norm_mode: NormMode = "batch",
        walk: Walk | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Run candidates that differ from the current sub-network in one channel group each.

        The current sub-network is walked through once; each candidate branches off at the first step that its channel
        group touches. The bits are those of `forward`.

        Args:
            images: normalised float images (B, 3, H, W).
            current: the sub-network that they share.
            candidates: pairs (channel group that differs, candidate from `narrowed`).
            norm_mode: statistics of the batch, or running ones.
            walk: what `scores` found on the way through the current sub-network with these images; None to go again.
            check: called before each candidate; raises to stop there.

        Returns:
            What the network returns for each candidate, in their order.
        """
        waiting: dict[int, list[int]] = {}
        for position, (group, _) in enumerate(candidates):
            waiting.setdefault(self._first[group], []).append(position)
        outputs: dict[int, Any] = {}
        values: dict[str, Any] = {self._program.input: self.arithmetic.images(images)}
        reached = 0
        for index in sorted(waiting):
            if walk is None:
                for step in range(reached, index):
                    self._step(values, current, norm_mode, step, 0)
                reached = index
            found = values if walk is None else {**values, **walk.before[index]}
            for position in waiting[index]:
                check()
                done = self._finish(dict(found), candidates[position][1], norm_mode, index)
                outputs[position] = self._program.output(done)
        return [outputs[position] for position in range(len(candidates))]

    def scores(
        self, images: Tensor, loss_fn: Callable[[Any], Tensor], prepared: Prepared, *, norm_mode: NormMode = "batch"
    ) -> tuple[Any, dict[str, Tensor], Walk]:
        """Compute the importance of every channel of a sub-network on one batch; see `MaskedNetwork.scores`.

        Args:
            images: normalised float images (B, 3, H, W), one whole batch.
            loss_fn: maps the network's output to a scalar L.
            prepared: the sub-network.
            norm_mode: statistics of the batch, or running ones.

        Returns:
            The network's output, detached; by channel group a float64 vector of non-negative scores on the CPU; and
            what `branches` can start from.
        """
        totals = torch.zeros(int(self.graph.classes.max()) + 1, dtype=torch.float64, device=images.device)
        leaves: list[Tensor] = []
        depends = {self._program.input: False}  # by value, whether a leaf stands before it
        handles = []
        before: dict[int, dict[str, Any]] = {}
        branching = frozenset(self._first.values())

        def add(site: Site, value: Tensor, gradient: Tensor) -> None:
            axes_but_one = [axis for axis in range(value.ndim) if axis != site.axis]
            dtype = torch.promote_types(value.dtype, torch.float32)
            products = (gradient * value).sum(axes_but_one, dtype=dtype)
            present = prepared.present.get(site.node)
            classes = site.classes if present is None else site.classes[present]
            totals.add_(torch.zeros_like(totals).index_add_(0, classes.to(value.device), products.double()).abs_())

        with torch.enable_grad():
            values: dict[str, Any] = {self._program.input: self.arithmetic.images(images)}
            for index, step in enumerate(self._program.steps):
                if index in branching:
                    before[index] = {
                        name: _detached(value) for name, value in values.items() if name != self._program.input
                    }
                self._step(values, prepared, norm_mode, index, index + 1)
                site, depends[step.name] = self._sites.get(step.name), any(map(depends.__getitem__, step.inputs))
                if not depends[step.name]:  # a module that is no known layer brings gradients to its own parameters
                    values[step.name] = _detached(values[step.name])
                if site is not None:
                    value = values[step.name]
                    if not depends[step.name]:
                        value = values[step.name] = value.requires_grad_()
                        leaves.append(value)
                        depends[step.name] = True
                    handles.append(value.register_hook(partial(add, site, value.detach())))
            output = self._program.output(values)
            del values
            if leaves:
                torch.autograd.grad(loss_fn(output), leaves, allow_unused=True)
        for handle in handles:
            handle.remove()
        found = totals.cpu()
        by_group = {name: found[classes] for name, classes in self.graph.group_classes.items()}
        return _detached(output), by_group, Walk(before)

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
            shaped = mask.to(value.dtype).view(self._sites[step.name].shape())
            value = value.mul_(shaped) if step.is_fresh and start <= index else value * shaped
        values[step.name] = value
        for name in step.inputs:
            if program.last_use[name] == index and name != program.input:
                values.pop(name, None)


def first_steps(graph: ChannelGraph, program: Program) -> dict[str, int]:
    """By channel group, the index of the first step whose result depends on which channels it keeps."""
    found = {}
    for group in graph.groups:
        read = {member.layer for member in (*group.producers, *group.depthwise, *group.consumers)}
        calls = [call.node for call in graph.labelling.evaluation_layers if call.path in read]
        found[group.name] = min(program.index[node] for node in (*calls, *group.sites))
    return found


def _detached(output: Any) -> Any:
    return pytree.tree_map_only(Tensor, Tensor.detach, output)
