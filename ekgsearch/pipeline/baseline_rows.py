"""Rows of the networks that the slim network is compared with, and of the stages of a cut."""

import math
from collections.abc import Callable, Iterator, Sequence

from ekgsearch.channels.cost import cost
from ekgsearch.finetune.metrics import TrainResult
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.finetune import Finetune
from ekgsearch.pipeline.measurements import has_measurements, read_measurements
from ekgsearch.pipeline.stages import Stage
from ekgsearch.rows.training import BaselineRow, StageRow
from ekgsearch.workers.training import Outcome, outcome_path


def trained(context: RunContext, name: str, measure: Callable[[TrainResult], float]) -> float:
    """One accuracy of a training, percent; NaN where it was not run."""
    if not outcome_path(context.training_folder, name).exists():
        return math.nan
    return measure(Outcome.read(context.training_folder, name).result)


def baseline_rows(context: RunContext) -> list[BaselineRow]:
    """One for each baseline that has been trained."""
    return [_baseline(context, phase) for phase in _tuned(context) if phase.training != "slim"]


def _baseline(context: RunContext, phase: Finetune) -> BaselineRow:
    setup, full = context.setup, context.setup.full_costs
    subnetwork, found = final_subnetwork(context, phase.search), context.committed(phase.search)
    assert found is not None, "a network is found before it is trained"
    kept = cost(setup.graph, subnetwork, setup.budget.counter)
    has_same_channels = subnetwork.sha256 == final_subnetwork(context).sha256
    latencies = _latencies(context, phase.training, has_same_channels)
    return BaselineRow(
        run=setup.job.run_name,
        network=phase.training,
        method=_method(context, phase),
        groups=found.get("groups", setup.job.search.groups),
        stages=_num_cuts(Stage.of(found)),
        objective=phase.objective,
        counter=setup.budget.counter,
        kept_macs=kept.macs,
        macs_reduction=1 - kept.macs / full.macs,
        kept_params=kept.params,
        params_reduction=1 - kept.params / full.params,
        epochs=setup.job.finetune.epochs,
        top1=trained(context, phase.training, lambda result: result.last()),
        best_top1=trained(context, phase.training, lambda result: result.best_value),
        latency_ms=latencies.get("slim_batch1_ms", math.nan),
        latency_batch64_ms=latencies.get("slim_batch64_ms", math.nan),
        latency_ratio=latencies.get("ratio_batch1", math.nan),
        latency_ratio_batch64=latencies.get("ratio_batch64", math.nan),
        latency_noise=latencies.get("noise_batch1", math.nan),
        latency_noise_batch64=latencies.get("noise_batch64", math.nan),
    )


def _num_cuts(trained_before: Sequence[Stage]) -> int:
    """Stages that a network was cut in, without one that fell too far, where that was not the first."""
    held = [stage for stage in trained_before if stage.held]
    return len(held) + 1 if len(held) == len(trained_before) else max(1, len(held))


def stage_rows(context: RunContext) -> list[StageRow]:
    """One for each stage that has been trained, of every network that is cut in stages."""
    return [row for phase in _tuned(context) for row in _stages(context, phase)]


def _stages(context: RunContext, phase: Finetune) -> Iterator[StageRow]:
    setup, full = context.setup, context.setup.full_costs
    found = context.committed(phase.search)
    if found is None or "stages" not in found:
        return
    subnetwork = final_subnetwork(context, phase.search)
    kept = cost(setup.graph, subnetwork, setup.budget.counter)
    earlier = Stage.of(found)
    last = Stage(
        stage=len(earlier) + 1,
        subnetwork=subnetwork.sha256,
        macs=kept.macs,
        params=kept.params,
        epochs=found["epochs_left"],
        top1=trained(context, phase.training, lambda result: result.last()),
        held=True,
    )
    for stage in (*earlier, last):
        yield StageRow(
            run=setup.job.run_name,
            network=phase.training,
            method=_method(context, phase),
            groups=found["groups"],
            stage=stage.stage,
            kept_macs=stage.macs,
            macs_reduction=1 - stage.macs / full.macs,
            kept_params=stage.params,
            params_reduction=1 - stage.params / full.params,
            epochs=stage.epochs,
            top1=stage.top1,
            held=stage.held,
        )


def _tuned(context: RunContext) -> list[Finetune]:
    """Fine-tunings that have finished."""
    return [phase for phase in context.phases if isinstance(phase, Finetune) and context.committed(phase.name)]


def _method(context: RunContext, phase: Finetune) -> str:
    """Who has decided which channels the network keeps."""
    made = {choice.name: choice.method for choice in context.setup.job.finetune.baselines if choice.cuts}
    return made.get(phase.training, context.setup.job.search.method)


def _latencies(context: RunContext, network: str, has_same_channels: bool) -> dict[str, float]:
    """What was measured of a network, or of the slim one where it is of the same shape."""
    if not has_measurements(context):
        return {}
    measured = read_measurements(context)
    return dict(measured["slim"] if has_same_channels else measured.get(network, {}))
