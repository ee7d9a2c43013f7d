"""Exemplar filters: those that stay in each layer, and warnings of layers that keep one, or all."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import BudgetError, NetworkError
from ekgsearch.maths.affinity import Exemplars, exemplars
from ekgsearch.maths.similarity import Similarity
from ekgsearch.methods.base import Decision, Materials
from ekgsearch.methods.criteria import l1_scores, producer_filters
from ekgsearch.methods.epruner.initialise import initialised
from ekgsearch.methods.epruner.section import EprunerSection
from ekgsearch.methods.one_shot import decided
from ekgsearch.records import Subnetwork

log = logging.getLogger(__name__)

BETA_RESOLUTION = 1e-3
"""How closely the smallest beta that meets a budget is found."""

OTHER_BETAS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.73, 0.76, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Values of beta that are tried for a layer that keeps one filter, or all."""

_NUM_NAMED = 8


@dataclass(frozen=True, slots=True)
class Clustered:
    """A layer whose filters are clustered.

    Attributes:
        group: the channel group that it makes.
        filters: one in each row, (c, d) float64.
        similarity: how alike they are.
        is_late: whether it has the beta of the last layers.
    """

    group: ChannelGroup
    filters: NDArray[np.float64]
    similarity: Similarity
    is_late: bool


class Epruner:
    """EPruner (arXiv 2101.07985) on the private channel groups of any network; see `methods.base.Search`.

    Decision 0 is the unpruned network. Where teachers are asked for, the network at each of their betas follows, the
    smallest beta first; the last decision is the network that stays. Each layer is clustered by itself, on filters
    with all their inputs, so that no decision depends on another.
    """

    def __init__(self, section: EprunerSection, materials: Materials) -> None:
        self._section = section
        self._materials = materials

    def run(self, made: Sequence[Decision] = ()) -> Iterator[Decision]:
        """Yield the decisions that are not made yet.

        Raises:
            BudgetError: not even beta 1 meets the budget.
            NetworkError: weights that are not finite.
        """
        full = self._materials.graph.full()
        if not made:
            yield decided(self._materials, 0, full, full, {})
        if self.is_over(made):
            return
        layers, standing = self._layers(self._materials.open_graph()), made[-1].subnetwork if made else full
        for iteration in range(max(1, len(made)), len(self._materials.betas) + 1):
            decision = self._at(layers, self._materials.betas[iteration - 1], iteration, standing)
            standing = decision.subnetwork
            yield decision
        beta = self._beta(layers)
        decision = self._at(layers, beta, len(self._materials.betas) + 1, standing)
        self._warn_of_extremes(layers, beta)
        yield decision

    def is_over(self, made: Sequence[Decision]) -> bool:
        """Whether all are made."""
        return len(made) > len(self._materials.betas) + 1

    def depends_on_budget(self, made: Sequence[Decision]) -> bool:
        """All are stored with the budget: clustering again is as fast as looking."""
        return True

    def slim(self, graph: ChannelGraph, subnetwork: Subnetwork) -> nn.Module:
        """The network that fine-tuning starts from; the weights of `graph` are changed on the way."""
        section, materials = self._section, self._materials
        return initialised(graph, subnetwork, materials.groups, section.initialisation, section.norms, materials.seed)

    def _layers(self, graph: ChannelGraph) -> list[Clustered]:
        """Compare the filters of every layer, several layers at a time."""
        names = [group.name for group in self._materials.groups]
        with ThreadPoolExecutor(self._materials.threads, thread_name_prefix="similarities") as pool:
            return list(pool.map(lambda place: self._layer(graph, graph.group(names[place]), place), range(len(names))))

    def _layer(self, graph: ChannelGraph, group: ChannelGroup, place: int) -> Clustered:
        layer = graph.layers[group.producers[0].layer]
        rows = producer_filters(graph, group, {layer.path: layer.weight})[0]
        section = self._section
        is_wide = getattr(layer.module, "kernel_size", (1,)) != (1, 1)
        is_late = section.late_from is not None and place >= section.late_from
        try:
            similarity = Similarity.of(rows.numpy())
        except NetworkError as error:
            raise NetworkError(f"{layer.path}: {error}") from error
        return Clustered(group, rows.numpy(), similarity, is_late and (is_wide or section.late_first_conv))

    def _betas_of(self, layers: Sequence[Clustered], beta: float) -> list[float]:
        late = self._section.late_beta
        return [late if layer.is_late and late is not None else beta for layer in layers]

    def _chosen(self, layers: Sequence[Clustered], beta: float) -> list[Exemplars]:
        return exemplars([layer.similarity for layer in layers], self._betas_of(layers, beta))

    def _subnetwork(self, layers: Sequence[Clustered], chosen: Sequence[Exemplars]) -> Subnetwork:
        kept = dict(self._materials.graph.full().kept)
        for layer, found in zip(layers, chosen, strict=True):
            kept[layer.group.name] = self._kept(layer, found)
        return Subnetwork.of({name: list(channels) for name, channels in kept.items()})

    def _kept(self, layer: Clustered, found: Exemplars) -> tuple[int, ...]:
        """The exemplars, or with the initialisation `l1` as many filters, those with the largest norm."""
        if self._section.initialisation != "l1":
            return found.kept
        norms = l1_scores(torch.from_numpy(layer.filters)).tolist()
        order = sorted(range(len(norms)), key=lambda channel: (-norms[channel], channel))
        return tuple(sorted(order[: len(found.kept)]))

    def _at(self, layers: Sequence[Clustered], beta: float, iteration: int, standing: Subnetwork) -> Decision:
        """The decision at one beta; before it another sub-network stood."""
        chosen = self._chosen(layers, beta)
        for layer, found in zip(layers, chosen, strict=True):
            if not found.converged:
                log.info(
                    "%s: exemplars have not settled after %d sweeps at beta %g", layer.group.name, found.sweeps, beta
                )
        own = {"beta": beta, "layers": _records(layers, chosen, self._betas_of(layers, beta))}
        return decided(self._materials, iteration, standing, self._subnetwork(layers, chosen), own)

    def _beta(self, layers: Sequence[Clustered]) -> float:
        """The beta of the job, or the smallest that meets its budget."""
        if self._section.beta is not None:
            return self._section.beta
        budget = self._materials.budget

        def is_met(beta: float) -> bool:
            return budget.is_met(*self._materials.costs(self._subnetwork(layers, self._chosen(layers, beta))))

        if not is_met(1.0):
            macs, params = self._materials.costs(self._subnetwork(layers, self._chosen(layers, 1.0)))
            raise BudgetError(
                f"search: {budget.limit:,.0f} {budget.unit} cannot be met by exemplars: beta 1 still keeps "
                f"{budget.measured(macs, params):,}; choose a budget above that, or another search.method"
            )
        low, high = 0, round(1 / BETA_RESOLUTION)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_met(middle * BETA_RESOLUTION) else (middle, high)
        beta = round(high * BETA_RESOLUTION, 6)
        log.info("the smallest beta that meets the budget of %s %s: %g", f"{budget.limit:,.0f}", budget.unit, beta)
        return beta

    def _warn_of_extremes(self, layers: Sequence[Clustered], beta: float) -> None:
        """Name the layers that keep one filter, or all, and the betas that would not."""
        chosen = self._chosen(layers, beta)
        single = [layer for layer, found in zip(layers, chosen, strict=True) if len(found.kept) == 1 < layer.group.size]
        full = [
            layer
            for layer, found in zip(layers, chosen, strict=True)
            if len(found.kept) == layer.group.size and layer.group.size > 1
        ]
        for what, extreme in (("a single filter", single), ("all of its filters", full)):
            if extreme:
                named = "; ".join(self._otherwise(layer, keeps_one=extreme is single) for layer in extreme[:_NUM_NAMED])
                rest = f"; and {len(extreme) - _NUM_NAMED} more" if len(extreme) > _NUM_NAMED else ""
                log.warning(
                    "at beta %g %d of %d layers keep %s: %s%s", beta, len(extreme), len(layers), what, named, rest
                )

    def _otherwise(self, layer: Clustered, *, keeps_one: bool) -> str:
        """A layer, and the values of beta at which it is not cut like this."""
        found = exemplars([layer.similarity] * len(OTHER_BETAS), OTHER_BETAS)
        extreme = 1 if keeps_one else layer.group.size
        others = [beta for beta, one in zip(OTHER_BETAS, found, strict=True) if len(one.kept) != extreme]
        if not others:
            return f"{layer.group.name} (at every beta tried)"
        bound = f"more up to beta {max(others):g}" if keeps_one else f"fewer from beta {min(others):g} on"
        return f"{layer.group.name} ({bound})"


def _records(
    layers: Sequence[Clustered], chosen: Sequence[Exemplars], betas: Sequence[float]
) -> Mapping[str, Mapping[str, Any]]:
    """What the journal says of every layer."""
    return {
        layer.group.name: {
            "beta": beta,
            "num_kept": len(found.kept),
            "sweeps": found.sweeps,
            "converged": found.converged,
            "damping": found.damping,
        }
        for layer, found, beta in zip(layers, chosen, betas, strict=True)
    }
