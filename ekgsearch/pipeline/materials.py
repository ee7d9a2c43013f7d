"""What a run gives to the search of its method."""

from collections.abc import Callable

from ekgsearch.methods.base import BatchwiseEvaluator, Materials
from ekgsearch.pipeline.context import RunContext
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.spec import SearchSpec


def materials(
    context: RunContext, evaluator: Callable[[], BatchwiseEvaluator], spec: SearchSpec | None = None
) -> Materials:
    """Collect them.

    Args:
        context: the run.
        evaluator: starts the search workers.
        spec: how these evaluate; None for the spec of the job.
    """
    setup = context.setup
    has_workers = setup.job.search.needs_workers
    if has_workers and spec is None:
        spec = setup.search_spec
    return Materials(
        graph=setup.graph,
        groups=setup.groups,
        open_graph=context.open_graph,
        budget=setup.budget,
        seed=sub_seed(setup.job.seed, "criterion"),
        threads=setup.job.cluster.threads,
        evaluator=evaluator,
        batches=[] if spec is None else [index for index, _ in spec.batches],
        betas=setup.job.bank.betas or (),
        tie_tolerance=0.0 if spec is None else spec.tie_tolerance,
    )
