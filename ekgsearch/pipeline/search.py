"""The phase that searches for the sub-network, decision by decision."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ekgsearch.artefact.file import save_file
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.deciding import Deciding
from ekgsearch.pipeline.decisions import decisions
from ekgsearch.pipeline.found import SEARCH, slim_file, subnetwork_file
from ekgsearch.pipeline.memory import state_memory
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.structure import describe_slim
from ekgsearch.records import PhaseKind, Subnetwork, canonical_json
from ekgsearch.storage.files import write_atomically

log = logging.getLogger(__name__)

SEMANTICS = 1


class Search(Phase):
    """Decide by the method of the job, one line of the journal for each decision."""

    kind = PhaseKind.SEARCH
    name = SEARCH
    lines = ("iteration",)

    def __init__(self, *, needs_workers: bool) -> None:
        """Say whether the method evaluates networks."""
        self.needs_workers = needs_workers

    def check(self, context: RunContext) -> None:
        """Say how much memory a search worker needs."""
        if self.needs_workers and context.committed(self.name) is None:
            state_memory(context.setup)

    def inputs(self, context: RunContext) -> Inputs:
        """Those of the decisions, and the budget."""
        return search_inputs(context, with_budget=True)

    def run(self, context: RunContext) -> Result:
        """Decide until the budget is met, then write the slim network."""
        made = decisions(context)
        if made:
            log.info("continuing the search after iteration %d", made[-1].iteration)
        deciding = Deciding(context, made)
        begun, own = context.begun(self.name), self.identity(context).key
        if context.store is not None and begun is not None and begun["key"] == own:
            deciding.share(context.store, search_inputs(context, with_budget=False).key, own)
        else:  # also where another version goes on than the one that began
            deciding.compute()
        found = made[-1].subnetwork
        return write_found(context, self.name, deciding.search.slim(context.open_graph(), found), found)


def search_inputs(context: RunContext, *, with_budget: bool) -> Inputs:
    """What decisions depend on; the costs and channel groups are compared as they are found.

    Args:
        context: the run; its warm-up has been committed.
        with_budget: whether the budget belongs to it; what is decided far above it does not depend on it.
    """
    setup, job = context.setup, context.setup.job
    choices: dict[str, Any] = {
        "groups": {group.name: group.size for group in setup.graph.groups},
        "full_costs": [setup.full_costs.macs, setup.full_costs.params],
    }
    if job.bank.betas is not None:
        choices["bank.betas"] = sorted(job.bank.betas)
    if job.search.draws_at_random:
        choices["seed"] = job.seed
    return Inputs(
        semantics=SEMANTICS,
        sections={"search": job.search.deciding()},
        files={"weights": context.weights_sha256("warmup")},
        images={"search": setup.selection(setup.search_ids)} if job.search.needs_workers else {},
        network=setup.network_identity,
        choices=choices | ({"budget": setup.budget.limit} if with_budget and setup.budget.is_limit else {}),
        device=setup.devices.search if job.search.needs_workers else "cpu",
        threads=job.cluster.threads_per_worker if job.search.needs_workers else job.cluster.threads,
    )


def write_found(
    context: RunContext,
    search: str,
    network: nn.Module,
    subnetwork: Subnetwork,
    fields: Mapping[str, Any] | None = None,
) -> Result:
    """Write the sub-network that a phase has found, and the weights of its slim network.

    Args:
        context: the run.
        search: the phase.
        network: the slim network.
        subnetwork: channels that it keeps.
        fields: what else the journal says.
    """
    found, path = context.folder / subnetwork_file(search), context.folder / slim_file(search)
    write_atomically(found, (canonical_json(subnetwork.to_dict()) + "\n").encode())
    save_file(path, network.state_dict(), describe_slim(context.setup, subnetwork, "as searched, before fine-tuning"))
    return Result(files=(found.name, path.name), fields={"subnetwork": subnetwork.sha256, **(fields or {})})
