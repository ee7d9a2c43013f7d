"""The masked network: every sub-network of a network, with zeros in place of removed channels."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.kernels import at_uncut_norm, axes, channel_lines
from ekgsearch.channels.members import Layer, Site
from ekgsearch.channels.operations import Kind
from ekgsearch.records import NormMode, Subnetwork


class MaskedNetwork:
    """Evaluates sub-networks without cutting anything.

    Kernels are multiplied by the masks of their input and output channels and scaled to their uncut norm; feature maps
    are multiplied by the mask at each site. No gradient is recorded, and nothing of the network changes. Source: EKG
    (arXiv 2203.02651), sec. 3.

    Args:
        graph: analysed network; its current weights are read at each call.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._program = graph.trace.program
        self._sites: dict[str, Site] = {site.node: site for site in graph.sites}
        self._kernels = {path: layer for path, layer in graph.layers.items() if layer.kind is not Kind.NORM}
        self._layers_by_group = {
            group.name: frozenset(member.layer for member in (*group.producers, *group.depthwise, *group.consumers))
            for group in graph.groups
        }

    def weights(self, sub: Subnetwork, *, preserve_norm: bool = True) -> dict[str, Tensor]:
        """Compute the masked kernels of a sub-network; biases and layers that lose nothing stay as they are.

        Args:
            sub: the sub-network.
            preserve_norm: scale each kernel to the Frobenius norm of the uncut one (over the whole tensor).

        Returns:
            Kernel by layer path, detached, in the layout of the layer's weight.
        """
        self.graph.trace.bind()
        cut = self.graph.cut_groups(sub)
        touched = {path for name in cut for path in self._layers_by_group[name]}
        keep = self.graph.kept_classes(sub)
        found: dict[str, Tensor] = {}
        for path, layer in self._kernels.items():
            found[path] = masked_kernel(layer, keep, preserve_norm) if path in touched else layer.weight
        return found

    def masks(self, sub: Subnetwork) -> dict[str, Tensor]:
        """Compute the masks of a sub-network's feature maps.

        Args:
            sub: the sub-network.

        Returns:
            By site name a vector of 0 and 1 over the channels of its value; sites that lose nothing are absent.
        """
        cut = self.graph.cut_groups(sub)
        keep = self.graph.kept_classes(sub)
        like = next(self.graph.network.parameters())
        return {
            site.node: keep[site.classes].to(device=like.device, dtype=like.dtype)
            for site in self.graph.sites
            if not cut.isdisjoint(site.groups)
        }

    @torch.no_grad()
    def forward(
        self, images: Tensor, sub: Subnetwork, *, norm_mode: NormMode = "batch", preserve_norm: bool = True
    ) -> Any:
        """Run a sub-network.

        Args:
            images: normalised float images (B, 3, H, W).
            sub: the sub-network.
            norm_mode: statistics of the batch, or running ones; neither changes the network.
            preserve_norm: see `weights`.

        Returns:
            What the network returns: logits (B, classes).
        """
        self.graph.validate(sub)
        weights = self.weights(sub, preserve_norm=preserve_norm)
        return self.run(images, weights, self.masks(sub), norm_mode=norm_mode)[0]

    __call__ = forward

    @torch.no_grad()
    def run(
        self,
        images: Tensor,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        *,
        norm_mode: NormMode = "batch",
        keep: frozenset[str] = frozenset(),
    ) -> tuple[Any, dict[str, Any]]:
        """Run with given kernels and masks.

        Args:
            images: normalised float images (B, 3, H, W).
            weights: kernels from `weights`; layers without one use the network's own.
            masks: masks from `masks`.
            norm_mode: statistics of the batch, or running ones.
            keep: names of values to hand back.

        Returns:
            The network's output, and the kept values by name.
        """

        def mask(name: str, value: Any) -> Any:
            found = masks.get(name)
            return value if found is None else value * found.to(value.dtype).view(self._sites[name].shape())

        return self._run(images, weights, mask, norm_mode, keep)

    def scores(
        self,
        images: Tensor,
        loss_fn: Callable[[Any], Tensor],
        sub: Subnetwork,
        *,
        norm_mode: NormMode = "batch",
        preserve_norm: bool = True,
    ) -> dict[str, Tensor]:
        """Compute the importance of every channel of a sub-network on one batch.

        At each site, the absolute value of sum(f * dL/df) over images and positions of a channel's feature map f,
        which is the derivative of L to a gate on that channel there; summed over sites. Removed channels get 0.
        Source: EKG (arXiv 2203.02651), sec. 3 (S = |dR/df * f|); the reference code sums sites in the same way.

        Args:
            images: normalised float images (B, 3, H, W), one whole batch.
            loss_fn: maps the network's output to a scalar L.
            sub: the sub-network.
            norm_mode: statistics of the batch, or running ones.
            preserve_norm: see `weights`.

        Returns:
            float64 vector of non-negative scores, one per channel, by channel group.
        """
        self.graph.validate(sub)
        weights, masks = self.weights(sub, preserve_norm=preserve_norm), self.masks(sub)
        gates: dict[str, Tensor] = {}

        def mask(name: str, value: Any) -> Any:
            site = self._sites.get(name)
            if site is None:
                return value
            found = masks.get(name)
            masked = value if found is None else value * found.to(value.dtype).view(site.shape())
            gates[name] = torch.ones(len(site.classes), dtype=value.dtype, device=value.device, requires_grad=True)
            return masked * gates[name].view(site.shape())

        with torch.enable_grad():
            output, _ = self._run(images, weights, mask, norm_mode, frozenset())
            loss = loss_fn(output)
            gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True) if gates else ()
        return self._gather_scores(dict(zip(gates, gradients, strict=True)))

    def _gather_scores(self, gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Add up the gate gradients of each class within a site, then their absolute values over sites."""
        like = next(self.graph.network.parameters())
        totals = torch.zeros(int(self.graph.classes.max()) + 1, dtype=torch.float64, device=like.device)
        for name, gradient in gradients.items():
            if gradient is not None:
                classes = self._sites[name].classes.to(gradient.device)
                totals += torch.zeros_like(totals).index_add_(0, classes, gradient.double()).abs()
        found = totals.cpu()
        return {name: found[classes] for name, classes in self.graph.group_classes.items()}

    def _run(
        self,
        images: Tensor,
        weights: Mapping[str, Tensor],
        mask: Callable[[str, Any], Any],
        norm_mode: NormMode,
        keep: frozenset[str],
    ) -> tuple[Any, dict[str, Any]]:
        program = self._program
        values: dict[str, Any] = {program.input: images}
        for index, step in enumerate(program.steps):
            values[step.name] = mask(step.name, step.call(values, weights, norm_mode))
            for name in step.inputs:
                if program.last_use[name] == index and name not in keep and name != program.input:
                    values.pop(name, None)
        return program.output(values), {name: values[name] for name in keep if name in values}


def masked_kernel(layer: Layer, keep: Tensor, scaled: bool) -> Tensor:
    """Multiply a layer's kernel by the masks of both its axes; if asked, scale it to the norm of the uncut one."""
    weight = layer.weight
    kernel = weight
    for axis, classes in zip(axes(layer), channel_lines(layer), strict=True):
        if axis is not None:
            shape = [-1 if other == axis else 1 for other in range(weight.ndim)]
            kernel = kernel * keep[classes].to(device=weight.device, dtype=weight.dtype).view(shape)
    return at_uncut_norm(kernel, weight) if scaled else kernel
