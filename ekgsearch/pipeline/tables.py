"""The parquet tables of a run, derived from its journal, its trainings, its ledger and its measurements."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from ekgsearch.methods.base import Decision
from ekgsearch.pipeline.baseline_rows import baseline_rows, stage_rows
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import decisions, final_subnetwork
from ekgsearch.pipeline.summary import summary_row
from ekgsearch.records import canonical_json
from ekgsearch.rows.search import CandidateRow, IterationRow, SubnetworkRow
from ekgsearch.rows.tables import TABLES
from ekgsearch.rows.training import EpochRow
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.tables import write_table
from ekgsearch.workers.training import Outcome, outcome_path

log = logging.getLogger(__name__)


def write_tables(context: RunContext) -> None:
    """Write every table that the run has rows for so far; the summary only once it has been evaluated."""
    rows: dict[str, Sequence[Any]] = {
        "iterations": _iterations(context),
        "candidates": _candidates(context),
        "subnetworks": _subnetworks(context),
        "epochs": _epochs(context),
        "baselines": baseline_rows(context),
        "stages": stage_rows(context),
        "device_hours": context.ledger.rows(),
    }
    if context.committed("evaluate"):
        rows["summary"] = [summary_row(context, rows["device_hours"])]
    folder = context.folder / "tables"
    make_folder(folder)
    for table, table_rows in rows.items():
        write_table(folder / f"{table}.parquet", table_rows, TABLES[table])


def _iterations(context: RunContext) -> list[IterationRow]:
    return [_iteration(context, decision) for decision in decisions(context)]


def _iteration(context: RunContext, decision: Decision) -> IterationRow:
    full, found = context.setup.full_costs, decision.evaluation
    threshold: float | None = decision.own.get("threshold")
    return IterationRow(
        run=context.setup.job.run_name,
        iteration=decision.iteration,
        channel_group=decision.group,
        num_kept=len(decision.subnetwork[decision.group]) if decision.group else 0,
        num_candidates=len(decision.candidates),
        threshold=math.nan if threshold is None else threshold,
        loss=math.nan if found is None else found.loss,
        score=math.nan if found is None else found.score,
        search_top1=math.nan if found is None else 100 * found.correct / found.images,
        kept_macs=decision.macs,
        macs_reduction=1 - decision.macs / full.macs,
        kept_params=decision.params,
        params_reduction=1 - decision.params / full.params,
    )


def _candidates(context: RunContext) -> list[CandidateRow]:
    return [
        CandidateRow(
            run=context.setup.job.run_name,
            iteration=decision.iteration,
            channel_group=outcome.group,
            num_kept=outcome.num_kept,
            loss=outcome.evaluation.loss,
            score=outcome.evaluation.score,
            reward=-outcome.evaluation.score,
            search_top1=100 * outcome.evaluation.correct / outcome.evaluation.images,
            kept_macs=outcome.macs,
            won=outcome.group == decision.group,
            images=outcome.evaluation.images,
        )
        for decision in decisions(context)
        for outcome in decision.candidates
    ]


def _subnetworks(context: RunContext) -> list[SubnetworkRow]:
    made = decisions(context)
    bank = context.committed("bank")
    teachers: list[int] = bank["teachers"] if bank else []
    found = [(decision.iteration, decision.subnetwork) for decision in made]
    if not made and context.committed("search"):
        found = [(0, context.setup.graph.full()), (1, final_subnetwork(context))]
    sizes = {group.name: group.size for group in context.setup.graph.groups}
    return [
        SubnetworkRow(
            run=context.setup.job.run_name,
            iteration=iteration,
            teacher=teachers.index(iteration) if iteration in teachers else -1,
            channel_group=name,
            size=sizes[name],
            num_kept=len(kept),
            kept=canonical_json(list(kept)),
        )
        for iteration, subnetwork in found
        for name, kept in subnetwork.kept
    ]


def _epochs(context: RunContext) -> list[EpochRow]:
    names = (name for phase in context.phases for name in phase.trainings)
    finished = [name for name in names if outcome_path(context.training_folder, name).exists()]
    return [
        row for name in finished for row in Outcome.read(context.training_folder, name).rows(context.setup.job.run_name)
    ]
