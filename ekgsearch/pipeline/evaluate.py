"""Accuracy and latency of the networks before and after."""

import logging

import torch
from torch import nn

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.slim import slim
from ekgsearch.finetune.average import RECALIBRATION_IMAGES, recalibrate_on
from ekgsearch.finetune.config import TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.latency import compare_latencies
from ekgsearch.pipeline.measurements import has_measurements, save_measurements
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.tables import write_tables
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.environment import device_name
from ekgsearch.runtime.progress import Progress
from ekgsearch.workers.training import load_student

log = logging.getLogger(__name__)


def evaluate_and_write_tables(state: RunState) -> None:
    """Measure accuracy and latency of the networks before and after, then write all tables."""
    is_evaluated = state.line("evaluate") is not None
    if not is_evaluated or not has_measurements(state):
        EXACT.set_backends()  # a search in this process may have asked for another arithmetic
        device, devices = torch.device(state.setup.device), state.setup.num_local_devices
        with state.ledger.attempt(PhaseKind.EVALUATE, device_name(device), devices) as clock, clock.working(devices):
            full = state.setup.workload(state.committed("pretrain") or state.start_weights).open_network()
            final = load_student(state.workload, final_subnetwork(state), state.folder / "final.safetensors")
            correct = {} if is_evaluated else _correct(state, full, final, device)
            save_measurements(state, _latencies(state, full, final, device))
        if not is_evaluated:
            state.journal.append("evaluate", **correct)
    write_tables(state)


def _correct(state: RunState, full: nn.Module, final: nn.Module, device: torch.device) -> dict[str, int]:
    """Correct test images of every network."""
    setup = state.setup
    searched = slim(state.open_graph(), final_subnetwork(state))
    normalise = state.workload.normalisation
    correct: dict[str, int] = {}
    with Progress("evaluation", 4 * len(setup.test), "images", log) as progress:

        def measure(name: str, network: nn.Module) -> None:
            result = evaluate(network.to(device), setup.test, normalise, World(device))
            correct[name] = result.correct
            progress.advance(result.images, **{name: f"{result.top1:.2f}"})

        measure("full", full)
        measure("searched", searched)
        _recalibrate(state, searched, device)
        measure("recalibrated", searched)
        measure("final", final)
    return {**correct, "images": len(setup.test)}


def _latencies(state: RunState, full: nn.Module, final: nn.Module, device: torch.device) -> dict[str, float]:
    """How long the full and the final network take for one image and for 64, and how sure their ratio is."""
    latencies: dict[str, float] = {}
    for batch_size in (1, 64):
        found = compare_latencies(full, final, state.setup.net.input_shape, batch_size, device)
        latencies[f"full_batch{batch_size}_ms"] = found.full_ms
        latencies[f"slim_batch{batch_size}_ms"] = found.slim_ms
        latencies[f"ratio_batch{batch_size}"] = found.ratio
        latencies[f"ratio_low_batch{batch_size}"] = found.ratio_low
        latencies[f"ratio_high_batch{batch_size}"] = found.ratio_high
        latencies[f"noise_batch{batch_size}"] = found.noise
    return latencies


def _recalibrate(state: RunState, network: nn.Module, device: torch.device) -> None:
    """Average the running statistics again over training images in use, un-augmented, in a fixed random order."""
    setup = state.setup
    data = TrainData(
        setup.dataset.train, state.workload.normalisation, ids=setup.train_ids, max_damaged=setup.data.max_damaged
    )
    recalibrate_on(network.to(device), data, images=RECALIBRATION_IMAGES, seed=setup.job.seed)
