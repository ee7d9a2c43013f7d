"""The parquet tables of a run, derived from its journal, its trainings, its ledger and its measurements."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from ekgsearch.channels.cost import conv_channels, cost
from ekgsearch.finetune.metrics import TrainResult
from ekgsearch.methods.base import Decision
from ekgsearch.pipeline.baseline_rows import baseline_rows, stage_rows, trained
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import decisions, final_subnetwork
from ekgsearch.pipeline.measurements import has_measurements, read_measurements
from ekgsearch.pipeline.replaced import replaced_in_bank
from ekgsearch.records import PhaseKind, canonical_json
from ekgsearch.rows.run import DeviceHoursRow, SummaryRow
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
        rows["summary"] = [_summary(context, rows["device_hours"])]
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


def _summary(context: RunContext, device_hours: Sequence[DeviceHoursRow]) -> SummaryRow:
    setup, job = context.setup, context.setup.job
    line = context.committed("evaluate")
    assert line is not None, "the summary comes after the evaluation"
    top1 = {name: 100 * line[name] / line["images"] for name in ("full", "searched", "recalibrated", "final")}
    latencies = read_measurements(context)["slim"] if has_measurements(context) else {}
    subnetwork = final_subnetwork(context)
    kept = cost(setup.graph, subnetwork, setup.budget.counter)
    made = decisions(context)
    devices = [
        row.device for row in device_hours if row.phase in (PhaseKind.SEARCH, PhaseKind.FINETUNE, PhaseKind.EVALUATE)
    ]
    return SummaryRow(
        run=job.run_name,
        method=job.search.method,
        dataset=job.data.title or job.data.name,
        architecture=setup.recipe.name,
        objective=job.finetune.objective,
        seed=job.seed,
        finetune_seed=job.finetune_seed,
        full_top1=top1["full"],
        searched_top1=top1["searched"],
        recalibrated_top1=top1["recalibrated"],
        final_top1=top1["final"],
        best_top1=trained(context, "slim", lambda result: result.best_value),
        plain_top1=_trained(
            context, "slim" if job.finetune.objective == "plain" else "plain", lambda result: result.last()
        ),
        uniform_top1=trained(context, "uniform", lambda result: result.last()),
        counter=setup.budget.counter,
        full_macs=setup.full_costs.macs,
        kept_macs=kept.macs,
        macs_reduction=1 - kept.macs / setup.full_costs.macs,
        full_channels=conv_channels(setup.graph, setup.graph.full()),
        kept_channels=conv_channels(setup.graph, subnetwork),
        full_params=setup.full_costs.params,
        kept_params=kept.params,
        params_reduction=1 - kept.params / setup.full_costs.params,
        full_latency_ms=latencies.get("full_batch1_ms", math.nan),
        slim_latency_ms=latencies.get("slim_batch1_ms", math.nan),
        full_latency_batch64_ms=latencies.get("full_batch64_ms", math.nan),
        slim_latency_batch64_ms=latencies.get("slim_batch64_ms", math.nan),
        iterations=max(0, len(made) - 1),
        candidates=sum(len(decision.candidates) for decision in made),
        device_hours=sum(row.device_hours for row in device_hours),
        device=", ".join(sorted(set(devices))),
        ema_top1=trained(context, "slim", lambda result: result.last("ema")),
        averaged_top1=trained(context, "slim", lambda result: result.last("averaged")),
        replaced_bank_images=replaced_in_bank(context),
        finetune_epochs=job.finetune.epochs,
        latency_ratio=latencies.get("ratio_batch1", math.nan),
        latency_ratio_low=latencies.get("ratio_low_batch1", math.nan),
        latency_ratio_high=latencies.get("ratio_high_batch1", math.nan),
        latency_noise=latencies.get("noise_batch1", math.nan),
        latency_ratio_batch64=latencies.get("ratio_batch64", math.nan),
        latency_ratio_low_batch64=latencies.get("ratio_low_batch64", math.nan),
        latency_ratio_high_batch64=latencies.get("ratio_high_batch64", math.nan),
        latency_noise_batch64=latencies.get("noise_batch64", math.nan),
        test_images=line["images"],
        warnings="; ".join(setup.graph.warnings),
    )


def _trained(context: RunContext, name: str, measure: Callable[[TrainResult], float]) -> float:
    """One accuracy of a training, percent; NaN where it was not run."""
    if not outcome_path(context.training_folder, name).exists():
        return math.nan
    return measure(Outcome.read(context.training_folder, name).result)
