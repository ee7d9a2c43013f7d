"""The parquet tables of a run, derived from its journal, its trainings, its ledger and its measurements."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from ekgsearch.channels.cost import cost
from ekgsearch.finetune.metrics import TrainResult
from ekgsearch.pipeline.decisions import decisions, final_subnetwork
from ekgsearch.pipeline.measurements import read_measurements
from ekgsearch.pipeline.replaced import replaced_in_bank
from ekgsearch.pipeline.state import RunState
from ekgsearch.records import PhaseKind, canonical_json
from ekgsearch.rows import TABLES, CandidateRow, DeviceHoursRow, EpochRow, IterationRow, SubnetworkRow, SummaryRow
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.tables import write_table
from ekgsearch.workers.training import Outcome, outcome_path

log = logging.getLogger(__name__)

TRAININGS = ("full", "warmup", "slim", "plain", "uniform")


def write_tables(state: RunState) -> None:
    """Write every table that the run has rows for so far; the summary only once it has been evaluated."""
    rows: dict[str, Sequence[Any]] = {
        "iterations": _iterations(state),
        "candidates": _candidates(state),
        "subnetworks": _subnetworks(state),
        "epochs": _epochs(state),
        "device_hours": state.ledger.rows(),
    }
    if state.line("evaluate"):
        rows["summary"] = [_summary(state, rows["device_hours"])]
    folder = state.folder / "tables"
    make_folder(folder)
    for table, table_rows in rows.items():
        write_table(folder / f"{table}.parquet", table_rows, TABLES[table])


def _iterations(state: RunState) -> list[IterationRow]:
    full = state.setup.full_costs
    return [
        IterationRow(
            run=state.setup.job.run_name,
            iteration=decision.iteration,
            channel_group=decision.group,
            num_kept=len(decision.subnetwork[decision.group]) if decision.group else 0,
            num_candidates=len(decision.candidates),
            threshold=math.nan if decision.threshold is None else decision.threshold,
            loss=decision.evaluation.loss,
            score=decision.evaluation.score,
            search_top1=100 * decision.evaluation.correct / decision.evaluation.images,
            kept_macs=decision.macs,
            macs_reduction=1 - decision.macs / full.macs,
            kept_params=decision.params,
            params_reduction=1 - decision.params / full.params,
        )
        for decision in decisions(state)
    ]


def _candidates(state: RunState) -> list[CandidateRow]:
    return [
        CandidateRow(
            run=state.setup.job.run_name,
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
        for decision in decisions(state)
        for outcome in decision.candidates
    ]


def _subnetworks(state: RunState) -> list[SubnetworkRow]:
    made = decisions(state)
    bank = state.line("bank")
    teachers: list[int] = bank["teachers"] if bank else []
    found = [(decision.iteration, decision.subnetwork) for decision in made]
    if not made and state.line("search"):
        found = [(0, state.setup.graph.full()), (1, final_subnetwork(state))]
    sizes = {group.name: group.size for group in state.setup.graph.groups}
    return [
        SubnetworkRow(
            run=state.setup.job.run_name,
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


def _epochs(state: RunState) -> list[EpochRow]:
    finished = [name for name in TRAININGS if outcome_path(state.training_folder, name).exists()]
    return [
        row for name in finished for row in Outcome.read(state.training_folder, name).rows(state.setup.job.run_name)
    ]


def _summary(state: RunState, device_hours: Sequence[DeviceHoursRow]) -> SummaryRow:
    setup, job = state.setup, state.setup.job
    line = state.line("evaluate")
    assert line is not None, "the summary comes after the evaluation"
    top1 = {name: 100 * line[name] / line["images"] for name in ("full", "searched", "recalibrated", "final")}
    latencies: dict[str, float] = read_measurements(state)
    kept = cost(setup.graph, final_subnetwork(state), setup.budget.counter)
    made = decisions(state)
    devices = [
        row.device for row in device_hours if row.phase in (PhaseKind.SEARCH, PhaseKind.FINETUNE, PhaseKind.EVALUATE)
    ]
    return SummaryRow(
        run=job.run_name,
        method=job.search.method,
        dataset=job.data.name,
        architecture=setup.net.name,
        objective=job.finetune.objective,
        seed=job.seed,
        finetune_seed=job.finetune_seed,
        full_top1=top1["full"],
        searched_top1=top1["searched"],
        recalibrated_top1=top1["recalibrated"],
        final_top1=top1["final"],
        best_top1=_trained(state, "slim", lambda result: result.best_top1),
        plain_top1=_trained(
            state, "slim" if job.finetune.objective == "plain" else "plain", lambda result: result.last_top1
        ),
        uniform_top1=_trained(state, "uniform", lambda result: result.last_top1),
        counter=setup.budget.counter,
        full_macs=setup.full_costs.macs,
        kept_macs=kept.macs,
        macs_reduction=1 - kept.macs / setup.full_costs.macs,
        full_params=setup.full_costs.params,
        kept_params=kept.params,
        params_reduction=1 - kept.params / setup.full_costs.params,
        full_latency_ms=latencies["full_batch1_ms"],
        slim_latency_ms=latencies["slim_batch1_ms"],
        full_latency_batch64_ms=latencies["full_batch64_ms"],
        slim_latency_batch64_ms=latencies["slim_batch64_ms"],
        iterations=max(0, len(made) - 1),
        candidates=sum(len(decision.candidates) for decision in made),
        device_hours=sum(row.device_hours for row in device_hours),
        device=", ".join(sorted(set(devices))),
        ema_top1=_trained(state, "slim", lambda result: result.ema_top1),
        averaged_top1=_trained(state, "slim", lambda result: result.averaged_top1),
        replaced_bank_images=replaced_in_bank(state),
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


def _trained(state: RunState, name: str, measure: Callable[[TrainResult], float]) -> float:
    """One accuracy of a training, percent; NaN where it was not run."""
    if not outcome_path(state.training_folder, name).exists():
        return math.nan
    return measure(Outcome.read(state.training_folder, name).result)
