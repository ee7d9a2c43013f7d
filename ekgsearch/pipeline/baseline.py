"""The phases that make the networks of baselines, to the cost of the network that they are compared with."""

from dataclasses import replace

from ekgsearch.channels.cost import cost
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.fresh import start_afresh
from ekgsearch.methods.section import SearchSection
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.found import SEARCH
from ekgsearch.pipeline.materials import materials
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.search import write_found
from ekgsearch.pipeline.search_work import search_work
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.training import load_student

SEMANTICS = 1


class BaselineCut(Phase):
    """Cut the network by the method of a baseline; no decision of it is in the journal."""

    kind = PhaseKind.SEARCH

    def __init__(self, section: SearchSection) -> None:
        """Choose the method; the budget of its section is not used."""
        self.name = f"{SEARCH}-{section.method}"
        self.needs_workers = section.needs_workers
        self._section = section

    def inputs(self, context: RunContext) -> Inputs:
        """The weights, the method, and what it is cut to."""
        setup, job, section = context.setup, context.setup.job, self._section
        budget = baseline_budget(context)
        return Inputs(
            semantics=SEMANTICS,
            sections={"search": section.deciding()},
            files={"weights": context.weights_sha256("warmup")},
            images={"search": setup.selection(setup.search_ids)} if section.needs_workers else {},
            network=setup.network_identity,
            choices={
                "budget": [budget.limit, budget.unit, budget.counter],
                "groups": [group.name for group in setup.groups],
                **({"seed": job.seed} if section.draws_at_random else {}),
            },
            device=setup.devices.search if section.needs_workers else "cpu",
            threads=job.cluster.threads_per_worker if section.needs_workers else job.cluster.threads,
        )

    def run(self, context: RunContext) -> Result:
        """Let the method decide, and keep its last decision."""
        with search_work(context, self.name, self._section) as workers:
            search = self._section.open(materials(context, self._section, workers, budget=baseline_budget(context)))
            *_, last = search.run()
        return write_found(context, self.name, search.slim(context.open_graph(), last.subnetwork), last.subnetwork)


class FreshWeights(Phase):
    """Give the network that the search has found fresh weights."""

    kind = PhaseKind.SEARCH
    name = f"{SEARCH}-scratch"

    def inputs(self, context: RunContext) -> Inputs:
        """The architecture, and the seed."""
        return Inputs(
            semantics=SEMANTICS,
            network=context.setup.network_identity,
            choices={"subnetwork": final_subnetwork(context).sha256, "seed": context.setup.job.seed},
        )

    def run(self, context: RunContext) -> Result:
        """Draw the weights."""
        subnetwork = final_subnetwork(context)
        network = load_student(context.workload, subnetwork, context.slim_weights(SEARCH))
        start_afresh(network.modules(), sub_seed(context.setup.job.seed, "scratch"))
        return write_found(context, self.name, network, subnetwork)


def baseline_budget(context: RunContext) -> Budget:
    """What baselines are cut to: the budget of the job, else what the search has left."""
    setup = context.setup
    if setup.budget.is_limit:
        return setup.budget
    costs = cost(setup.graph, final_subnetwork(context), setup.budget.counter)
    return replace(setup.budget, limit=setup.budget.measured(costs.macs, costs.params))
