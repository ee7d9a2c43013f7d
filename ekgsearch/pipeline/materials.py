"""Materials that a run gives to the search of its method."""

from collections.abc import Callable

from ekgsearch.methods.base import BatchwiseEvaluator, Materials
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.section import EvaluatingSection, SearchSection
from ekgsearch.pipeline.context import RunContext
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.spec import SearchSpec


def materials(
    context: RunContext,
    section: SearchSection,
    evaluator: Callable[[], BatchwiseEvaluator],
    *,
    budget: Budget | None = None,
    spec: SearchSpec | None = None,
) -> Materials:
    """Collect them.

    Args:
        context: the run.
        section: what the method is.
        evaluator: gives the search workers.
        budget: what to meet; None for the budget of the job.
        spec: how the workers evaluate; None where they do as the section says.
    """
    setup = context.setup
    if isinstance(section, EvaluatingSection) and spec is None:
        spec = setup.spec_of(section)
    return Materials(
        graph=setup.graph,
        groups=setup.groups,
        open_graph=context.open_graph,
        budget=budget or setup.budget,
        seed=sub_seed(setup.job.seed, "criterion"),
        threads=setup.job.cluster.threads,
        evaluator=evaluator,
        batches=[] if spec is None else [index for index, _ in spec.batches],
        tie_tolerance=0.0 if spec is None else spec.tie_tolerance,
        betas=tuple(sorted(setup.job.bank.betas or ())),
    )
