"""Decide random iterations of a search again by the exact tier: how often its own tier agrees, and what it cost."""

import logging
import random
from collections.abc import Sequence

from ekgsearch.methods.base import Candidate, Decision, Repeats
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import decisions
from ekgsearch.pipeline.materials import materials
from ekgsearch.rows.search import AuditRow
from ekgsearch.rows.tables import TABLES
from ekgsearch.runtime.progress import Progress
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.tables import write_table
from ekgsearch.workers.team import Team

log = logging.getLogger(__name__)


def audit(context: RunContext, count: int) -> list[AuditRow]:
    """Decide random iterations of a finished search again, and write `tables/audit.parquet`.

    Every iteration starts from the state that the journal has: the sub-networks before it, whose logits the exact tier
    averages anew, and the rates of the step rule. The exact tier computes in 32-bit floats, evaluates every candidate
    on all images and settles near ties by the masked network, whatever the job says. The journal is not touched, and
    the time is not charged to the run.

    Args:
        context: a run whose search has finished.
        count: iterations to audit, at least 1; all where there are fewer.

    Returns:
        A row for each, in order of the iterations.
    """
    setup, made = context.setup, decisions(context)
    iterations = _chosen(len(made) - 1, count, setup.job.seed)
    rows: list[AuditRow] = []
    with (
        context.backend.team(setup.workload(context.start_weights, setup.devices.search), setup.exact_spec) as team,
        Progress("audit", len(iterations), "iterations", log) as progress,
    ):
        search = setup.job.search.open(materials(context, setup.job.search, lambda: team, spec=setup.exact_spec))
        assert isinstance(search, Repeats), "the run refuses to audit a method that cannot repeat a decision"
        num_averaged = 0
        for iteration in iterations:
            before = [decision.subnetwork for decision in made[num_averaged:iteration]]
            if num_averaged:
                team.extend(before)
            else:
                team.begin(before)
            num_averaged = iteration
            rows.append(_decide_again(setup.job.run_name, search, team, made[: iteration + 1]))
            progress.advance(iteration=iteration, agree=f"{sum(row.agrees for row in rows)}/{len(rows)}")
    folder = context.folder / "tables"
    make_folder(folder)
    write_table(folder / "audit.parquet", rows, TABLES["audit"])
    return rows


def _chosen(num_iterations: int, count: int, seed: int) -> list[int]:
    """Iterations to audit, ascending; a function of the seed of the job."""
    if count > num_iterations:
        log.warning("--audit %d, but the search made %d decisions: auditing all of them", count, num_iterations)
        count = num_iterations
    generator = random.Random(sub_seed(seed, "audit"))
    return sorted(generator.sample(range(1, num_iterations + 1), count))


def _decide_again(run: str, search: Repeats, team: Team, made: Sequence[Decision]) -> AuditRow:
    """Repeat the last of these decisions; the team holds the ensemble knowledge of those before."""
    then = made[-1]
    exact = search.decide_after(made[:-1])
    agrees = then.subnetwork == exact.subnetwork
    assert exact.evaluation is not None, "the search evaluates what it decides"
    scores = [exact.evaluation.score] * 2
    if not agrees:
        both = [Candidate(one.group, one.subnetwork) for one in (then, exact)]
        scores = [evaluation.score for evaluation in team.settle(both)]
    shortlists = [{outcome.group for outcome in decision.candidates} for decision in (then, exact)]
    return AuditRow(
        run=run,
        iteration=then.iteration,
        channel_group=then.group,
        num_kept=len(then.subnetwork[then.group]),
        exact_channel_group=exact.group,
        exact_num_kept=len(exact.subnetwork[exact.group]),
        agrees=agrees,
        score=scores[0],
        exact_score=scores[1],
        regret=scores[0] - scores[1],
        shortlist_shared=len(shortlists[0] & shortlists[1]) / len(shortlists[0] | shortlists[1]),
    )
