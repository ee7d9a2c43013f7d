"""The parquet tables of a run, derived from its journal, its trainings, its ledger and its measurements."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ekgsearch.bank.select import choose_teachers
from ekgsearch.channels.cost import cost
from ekgsearch.errors import StorageError
from ekgsearch.finetune.metrics import TrainResult
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.training import Outcome, outcome_path
from ekgsearch.records import Phase, Subnetwork, canonical_json
from ekgsearch.rows import TABLES, CandidateRow, DeviceHoursRow, EpochRow, IterationRow, SubnetworkRow, SummaryRow
from ekgsearch.search.base import Decision, decisions_from_records
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.sealed import read_sealed, sealed
from ekgsearch.storage.tables import write_table

log = logging.getLogger(__name__)

TRAININGS = ("full", "warmup", "slim", "plain", "uniform")


def decisions(state: RunState) -> list[Decision]:
    """The committed decisions of the search."""
    return decisions_from_records(state.lines("iteration"), state.setup.graph.full())


def teachers_of(state: RunState, made: Sequence[Decision]) -> tuple[int, ...]:
    """Iterations whose interim sub-networks become teachers; the last one is the student and is left out."""
    losses = [decision.evaluation.loss for decision in made[:-1] or made]
    return choose_teachers(losses, state.setup.job.bank.teachers)


def final_subnetwork(state: RunState) -> Subnetwork:
    """The sub-network that the search has committed."""
    path = state.folder / "subnetwork.json"
    try:
        subnetwork = Subnetwork.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"{path}: expected kept channels by channel group, found {error}") from error
    line = state.line("search")
    if line is None or line["subnetwork"] != subnetwork.sha256:
        raise StorageError(f"{path} is not the sub-network that the journal names; restore it or start again")
    return subnetwork


def save_measurements(state: RunState, values: dict[str, float]) -> None:
    """Keep what was measured on this machine and so does not belong in the journal: latencies and their ratios."""
    write_atomically(_measurements_path(state), sealed(values))


def has_measurements(state: RunState) -> bool:
    """Whether `save_measurements` has kept them and they are sound; they can be measured again."""
    if not _measurements_path(state).exists():
        return False
    try:
        read_sealed(_measurements_path(state))
    except StorageError as error:
        log.warning("%s; measuring again", error)
        return False
    return True


def _measurements_path(state: RunState) -> Path:
    return state.folder / "measurements.json"


def note_replaced(state: RunState, block: int, replaced: int) -> None:
    """Keep how many images of a block of the memory bank stand in for damaged ones; a run without damage has no file.

    The count depends on when a picture was damaged, so it does not belong in the journal.
    """
    counts = _replaced_by_block(state)
    if counts.get(str(block), 0) != replaced:
        write_atomically(_replaced_path(state), sealed({**counts, str(block): replaced}))


def replaced_in_bank(state: RunState) -> int:
    """Images that stand in for damaged ones in the blocks of the memory bank that this run has built.

    Raises:
        StorageError: the file with their counts is damaged.
    """
    return sum(_replaced_by_block(state).values())


def _replaced_by_block(state: RunState) -> dict[str, int]:
    path = _replaced_path(state)
    try:
        counts: dict[str, int] = read_sealed(path) if path.exists() else {}
    except StorageError as error:
        raise StorageError(
            f"{error}; restore it, or delete it: replaced_bank_images then counts none of the blocks built so far"
        ) from error
    return counts


def _replaced_path(state: RunState) -> Path:
    return state.folder / "bank-replaced.json"


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
    latencies: dict[str, float] = read_sealed(_measurements_path(state))
    kept = cost(setup.graph, final_subnetwork(state), setup.budget.counter)
    made = decisions(state)
    devices = [row.device for row in device_hours if row.phase in (Phase.SEARCH, Phase.FINETUNE, Phase.EVALUATE)]
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
