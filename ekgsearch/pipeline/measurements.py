"""Latencies of the networks of a run on this machine, kept next to the journal: part of no phase's result."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.errors import StorageError
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.evaluate import evaluating, full_and_final
from ekgsearch.pipeline.finetune import Finetune
from ekgsearch.runtime.latency import compare_latencies
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.sealed import read_sealed, sealed
from ekgsearch.workers.training import load_student

log = logging.getLogger(__name__)

Measurements = Mapping[str, Mapping[str, float]]
"""By network, `slim` or the name of a baseline: milliseconds, and their ratio to the unpruned network's."""


def measure_latencies(context: RunContext) -> None:
    """Measure the slim network and its baselines of another shape, next to the unpruned one, unless that is done."""
    measured = dict(read_measurements(context)) if has_measurements(context) else {}
    phases = [phase for phase in context.phases if isinstance(phase, Finetune) and phase.training not in measured]
    own = final_subnetwork(context).sha256
    wanted = [
        phase for phase in phases if phase.training == "slim" or final_subnetwork(context, phase.search).sha256 != own
    ]
    if not wanted:
        return
    EXACT.set_backends()
    with evaluating(context):
        full, final = full_and_final(context)
        for phase in wanted:
            network = final
            if phase.training != "slim":
                subnetwork = final_subnetwork(context, phase.search)
                network = load_student(context.workload, subnetwork, context.weights(phase.name))
            measured[phase.training] = _latencies(context, full, network)
        write_atomically(_measurements_path(context), sealed(measured))


def has_measurements(context: RunContext) -> bool:
    """Whether there are some and they are sound; they can be measured again."""
    if not _measurements_path(context).exists():
        return False
    try:
        read_sealed(_measurements_path(context))
    except StorageError as error:
        log.warning("%s; measuring again", error)
        return False
    return True


def read_measurements(context: RunContext) -> Measurements:
    """Read what `measure_latencies` has kept.

    Raises:
        StorageError: the file is missing or damaged.
    """
    measurements: Measurements = read_sealed(_measurements_path(context))
    return measurements


def _measurements_path(context: RunContext) -> Path:
    return context.folder / "measurements.json"


def _latencies(context: RunContext, full: nn.Module, slim: nn.Module) -> dict[str, float]:
    """How long the full and a slim network take for one image and for 64, and how sure their ratio is."""
    latencies: dict[str, float] = {}
    for batch_size in (1, 64):
        shape, device = context.setup.recipe.input_shape, torch.device(context.setup.device)
        found = compare_latencies(full, slim, shape, batch_size, device, check=context.check)
        latencies[f"full_batch{batch_size}_ms"] = found.full_ms
        latencies[f"slim_batch{batch_size}_ms"] = found.slim_ms
        latencies[f"ratio_batch{batch_size}"] = found.ratio
        latencies[f"ratio_low_batch{batch_size}"] = found.ratio_low
        latencies[f"ratio_high_batch{batch_size}"] = found.ratio_high
        latencies[f"noise_batch{batch_size}"] = found.noise
    return latencies
