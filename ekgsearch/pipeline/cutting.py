"""Cuts of a network at once, over the channel groups that a baseline may cut."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.cost import cost, reachable
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.data.subset import batches
from ekgsearch.errors import BudgetError, NetworkError
from ekgsearch.methods.baselines.section import OneShotSection
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.materials import materials
from ekgsearch.pipeline.phase import Inputs
from ekgsearch.pipeline.search_work import search_work
from ekgsearch.records import PhaseKind, Subnetwork
from ekgsearch.runtime.environment import device_name

log = logging.getLogger(__name__)

_BATCH = 250
"""Images of one batch on which two cuts are compared; batch statistics are of one of them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A network that is cut.

    Attributes:
        subnetwork: channels that it keeps.
        weights: file with weights of the unpruned network; masked by the sub-network they are those of what stands.
    """

    subnetwork: Subnetwork
    weights: Path

    def graph(self, context: RunContext) -> ChannelGraph:
        """The channel groups of the unpruned network with these weights."""
        return analyse(context.setup.workload(self.weights).open_network(), context.setup.recipe.input_shape)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut leaves.

    Attributes:
        section: how it was cut.
        subnetwork: channels that stay.
        losses: where there was a choice, by the channel groups that were cut, the loss on the search subset, nats per
            image.
    """

    section: OneShotSection
    subnetwork: Subnetwork
    losses: Mapping[str, float]

    @property
    def fields(self) -> dict[str, Any]:
        """What the journal says of it."""
        return {"groups": self.section.groups, **({"losses": dict(self.losses)} if self.losses else {})}


def best_cut(
    context: RunContext, instance: str, forms: Sequence[OneShotSection], budget: Budget, standing: Standing
) -> Cut:
    """Cut in each form that can meet the budget, and keep the network with the lowest loss on the search subset.

    Args:
        context: the run.
        instance: the phase, which the work is charged to.
        forms: how to cut, at least one.
        budget: what to meet.
        standing: what is cut.

    Raises:
        BudgetError, NetworkError: no form can meet it.
    """
    possible = able(context, forms, budget)
    cuts: dict[str, Subnetwork] = {
        section.groups: _cut(context, instance, section, budget, standing) for section in possible
    }
    if len(cuts) == 1:
        return Cut(possible[0], cuts[possible[0].groups], {})
    losses = _losses(context, instance, standing, cuts)
    best = min(possible, key=lambda section: losses[section.groups])
    log.info("%s: %s", instance, ", ".join(f"{name} channel groups lose {loss:.4f}" for name, loss in losses.items()))
    return Cut(best, cuts[best.groups], losses)


def cut_inputs(context: RunContext, semantics: int, forms: Sequence[OneShotSection], *, is_baseline: bool) -> Inputs:
    """What a cut depends on: the weights, the method, and what it is cut to.

    Args:
        context: the run.
        semantics: number of the version of the phase.
        forms: how to cut; they differ in the channel groups alone.
        is_baseline: whether it is cut to what the search has left, where the job says no budget.
    """
    setup, job, section = context.setup, context.setup.job, forms[0]
    budget = baseline_budget(context) if is_baseline else setup.budget
    looks = section.needs_workers or len(forms) > 1
    return Inputs(
        semantics=semantics,
        sections={"search": section.deciding()},
        files={"weights": context.weights_sha256("warmup")},
        images={"search": setup.selection(setup.search_ids)} if looks else {},
        network=setup.network_identity,
        choices={
            "budget": [budget.limit, budget.unit, budget.counter],
            "forms": [form.groups for form in forms],
            "groups": {group.name: group.size for group in setup.graph.groups},
            **({"seed": job.seed} if section.draws_at_random else {}),
        },
        device=setup.devices.search if section.needs_workers else "cpu",
        threads=job.cluster.threads_per_worker if section.needs_workers else job.cluster.threads,
    )


def baseline_budget(context: RunContext) -> Budget:
    """What baselines are cut to: the budget of the job, else what the search has left."""
    setup = context.setup
    if setup.budget.is_limit:
        return setup.budget
    costs = cost(setup.graph, final_subnetwork(context), setup.budget.counter)
    return replace(setup.budget, limit=setup.budget.measured(costs.macs, costs.params))


def able(context: RunContext, forms: Sequence[OneShotSection], budget: Budget) -> list[OneShotSection]:
    """Forms whose channel groups can be cut down to a budget.

    Raises:
        BudgetError: none can.
    """
    graph, possible, reasons = context.setup.graph, [], []
    for section in forms:
        try:
            least = reachable(graph, budget.counter, chosen_groups(graph, section))
        except NetworkError as error:
            reasons.append(str(error))
            continue
        if budget.is_met(least.macs, least.params):
            possible.append(section)
        else:
            reasons.append(
                f"{section.method} over {section.groups} channel groups: expected to keep at most "
                f"{budget.limit:,.0f} {budget.unit}, but it can cut down to "
                f"{budget.measured(least.macs, least.params):,} only; let it cut all (groups), or leave it out of "
                "finetune.baselines"
            )
    if not possible:
        raise BudgetError(reasons[0])
    for reason in reasons:
        log.info("left out: %s", reason)
    return possible


def _cut(context: RunContext, instance: str, section: OneShotSection, budget: Budget, standing: Standing) -> Subnetwork:
    with search_work(context, instance, section, standing.weights) as workers:
        common = materials(context, section, workers, budget=budget)
        groups = chosen_groups(context.setup.graph, section)
        search = section.open(replace(common, groups=groups, open_graph=lambda: standing.graph(context)))
        return search.cut(standing.subnetwork)[0]


@torch.no_grad()
def _losses(context: RunContext, instance: str, standing: Standing, cuts: Mapping[str, Subnetwork]) -> dict[str, float]:
    """Mean cross-entropy to the labels of some cuts on the search subset, batch statistics, nats per image."""
    setup, normalise, train = context.setup, context.workload.normalisation, context.setup.dataset.train
    devices = setup.num_local_devices
    device = device_name(torch.device(setup.device))
    with context.charged(PhaseKind.SEARCH, instance, device, devices) as clock, clock.working(devices):
        EXACT.set_backends()
        masked, totals = MaskedNetwork(standing.graph(context)), dict.fromkeys(cuts, 0.0)
        for ids in batches(setup.search_ids, _BATCH):
            context.check()
            images, labels = normalise(train.read(ids).to(setup.device)), train.labels[ids].to(setup.device)
            for name, subnetwork in cuts.items():
                logits = masked.forward(images, subnetwork, norm_mode="batch").double()
                totals[name] += float(F.cross_entropy(logits, labels, reduction="sum"))
    return {name: total / len(setup.search_ids) for name, total in totals.items()}
