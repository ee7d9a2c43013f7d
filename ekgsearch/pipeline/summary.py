"""The summary of a run: its result and its settings in one row."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ekgsearch.channels.cost import conv_channels, cost
from ekgsearch.finetune.metrics import TrainResult
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.pipeline.baseline_rows import trained
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import decisions, final_subnetwork
from ekgsearch.pipeline.finetune import finetune_config
from ekgsearch.pipeline.measurements import has_measurements, read_measurements
from ekgsearch.pipeline.replaced import replaced_in_bank
from ekgsearch.pipeline.settings import settings_of
from ekgsearch.records import PhaseKind
from ekgsearch.rows.run import DeviceHoursRow, SummaryRow
from ekgsearch.workers.training import Outcome, outcome_path


def summary_row(context: RunContext, device_hours: Sequence[DeviceHoursRow]) -> SummaryRow:
    """The summary of a run that has been evaluated; latencies are NaN until they are measured."""
    job, made = context.setup.job, decisions(context)
    phases = (PhaseKind.SEARCH, PhaseKind.FINETUNE, PhaseKind.EVALUATE)
    devices = [row.device for row in device_hours if row.phase in phases and row.device]
    takes_teachers = needs_of(job.finetune.objective).bank
    return SummaryRow(
        run=job.run_name,
        architecture=context.setup.recipe.name,
        **settings_of(job),
        finetune_temperature=finetune_config(context, job.finetune.objective).temperature if takes_teachers else None,
        **_accuracies(context),
        **_costs(context),
        **_latencies(context),
        iterations=max(0, len(made) - 1),
        candidates=sum(len(decision.candidates) for decision in made),
        device_hours=sum(row.device_hours for row in device_hours),
        device=", ".join(sorted(set(devices))),
        replaced_bank_images=replaced_in_bank(context),
        warnings="; ".join(context.setup.graph.warnings),
    )


def _accuracies(context: RunContext) -> dict[str, Any]:
    line, objective = context.committed("evaluate"), context.setup.job.finetune.objective
    assert line is not None, "the summary comes after the evaluation"
    plain = "slim" if objective == "plain" else "plain"
    return {
        **{f"{name}_top1": 100 * line[name] / line["images"] for name in ("full", "searched", "recalibrated", "final")},
        "best_top1": trained(context, "slim", lambda result: result.best_value),
        "plain_top1": _trained(context, plain, lambda result: result.last()),
        "uniform_top1": trained(context, "uniform", lambda result: result.last()),
        "ema_top1": trained(context, "slim", lambda result: result.last("ema")),
        "averaged_top1": trained(context, "slim", lambda result: result.last("averaged")),
        "test_images": line["images"],
    }


def _costs(context: RunContext) -> dict[str, Any]:
    setup = context.setup
    subnetwork, full = final_subnetwork(context), setup.full_costs
    kept = cost(setup.graph, subnetwork, setup.budget.counter)
    return {
        "counter": setup.budget.counter,
        "full_macs": full.macs,
        "kept_macs": kept.macs,
        "macs_reduction": 1 - kept.macs / full.macs,
        "full_params": full.params,
        "kept_params": kept.params,
        "params_reduction": 1 - kept.params / full.params,
        "full_channels": conv_channels(setup.graph, setup.graph.full()),
        "kept_channels": conv_channels(setup.graph, subnetwork),
    }


def _latencies(context: RunContext) -> dict[str, Any]:
    measured = read_measurements(context)["slim"] if has_measurements(context) else {}
    found: dict[str, Any] = {}
    for batch, ending in ((1, ""), (64, "_batch64")):
        for network in ("full", "slim"):
            found[f"{network}_latency{ending}_ms"] = measured.get(f"{network}_batch{batch}_ms", math.nan)
        for name in ("ratio", "ratio_low", "ratio_high", "noise"):
            found[f"latency_{name}{ending}"] = measured.get(f"{name}_batch{batch}", math.nan)
    return found


def _trained(context: RunContext, name: str, measure: Callable[[TrainResult], float]) -> float:
    """One accuracy of a training, percent; NaN where it was not run."""
    if not outcome_path(context.training_folder, name).exists():
        return math.nan
    return measure(Outcome.read(context.training_folder, name).result)
