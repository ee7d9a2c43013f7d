"""The phases that make the networks of baselines, to the cost of the network that they are compared with."""

from collections.abc import Sequence

from ekgsearch.channels.slim import slim
from ekgsearch.methods.baselines.section import OneShotSection
from ekgsearch.methods.fresh import start_afresh
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.cutting import Standing, able, baseline_budget, best_cut, cut_inputs
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.found import SEARCH
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.search import write_found
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.training import load_student

SEMANTICS = 2


class BaselineCut(Phase):
    """Cut the network by the method of a baseline; no decision of it is in the journal."""

    kind = PhaseKind.SEARCH

    def __init__(self, search: str, forms: Sequence[OneShotSection]) -> None:
        """Choose the method.

        Args:
            search: name of the phase.
            forms: its cuts, of which the best is kept; the budgets of these sections are not used.
        """
        self.name = search
        self.needs_workers = forms[0].needs_workers
        self._forms = forms

    def check(self, context: RunContext) -> None:
        """Refuse a cut that cannot go so far.

        Raises:
            BudgetError: the channel groups do not suffice.
        """
        if context.committed(self.name) is None and context.setup.budget.is_limit:
            able(context, self._forms, context.setup.budget)

    def inputs(self, context: RunContext) -> Inputs:
        """The weights, the method, and what it is cut to."""
        return cut_inputs(context, SEMANTICS, self._forms, is_baseline=True)

    def run(self, context: RunContext) -> Result:
        """Cut, and keep the weights of the channels that stay."""
        standing = Standing(context.setup.graph.full(), context.start_weights)
        cut = best_cut(context, self.name, self._forms, baseline_budget(context), standing)
        network = slim(standing.graph(context), cut.subnetwork)
        return write_found(context, self.name, network, cut.subnetwork, cut.fields)


class FreshWeights(Phase):
    """Give the network that the search has found fresh weights."""

    kind = PhaseKind.SEARCH
    name = f"{SEARCH}-scratch"

    def inputs(self, context: RunContext) -> Inputs:
        """The architecture, and the seed."""
        return Inputs(
            semantics=1,
            network=context.setup.network_identity,
            choices={"subnetwork": final_subnetwork(context).sha256, "seed": context.setup.job.seed},
        )

    def run(self, context: RunContext) -> Result:
        """Draw the weights."""
        subnetwork = final_subnetwork(context)
        network = load_student(context.workload, subnetwork, context.slim_weights(SEARCH))
        start_afresh(network.modules(), sub_seed(context.setup.job.seed, "scratch"))
        return write_found(context, self.name, network, subnetwork)
