"""Readers of the decisions that a run has committed."""

import json
from collections.abc import Sequence

from ekgsearch.bank.select import choose_teachers
from ekgsearch.errors import StorageError
from ekgsearch.methods.base import Decision, decisions_from_records
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.found import SEARCH, subnetwork_file
from ekgsearch.pipeline.lines import content
from ekgsearch.records import Subnetwork


def decisions(context: RunContext) -> list[Decision]:
    """The committed decisions of the search."""
    return decisions_from_records(map(content, context.lines("iteration")), context.setup.graph.full())


def teachers_of(context: RunContext, made: Sequence[Decision]) -> tuple[int, ...]:
    """Iterations whose interim sub-networks become teachers; the last one is the student and is left out.

    Where they were made on request and none is evaluated, all are; the unpruned network is left out.
    """
    if context.setup.job.bank.betas is not None:
        return tuple(range(1, len(made) - 1))
    losses = [decision.evaluation.loss for decision in made[:-1] or made if decision.evaluation is not None]
    return choose_teachers(losses, context.setup.job.bank.teachers)


def final_subnetwork(context: RunContext, search: str = SEARCH) -> Subnetwork:
    """The sub-network that a search has committed."""
    path = context.folder / subnetwork_file(search)
    try:
        subnetwork = Subnetwork.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"{path}: expected kept channels by channel group, found {error}") from error
    line = context.committed(search)
    if line is None or line["subnetwork"] != subnetwork.sha256:
        raise StorageError(f"{path} is not the sub-network that the journal names; restore it or start again")
    return subnetwork
