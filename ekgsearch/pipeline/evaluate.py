"""The phase that evaluates the networks before and after, and the measurement of their latencies."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.finetune.average import RECALIBRATION_IMAGES, recalibrate_on
from ekgsearch.finetune.config import TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.found import SEARCH, slim_file
from ekgsearch.pipeline.latency import compare_latencies
from ekgsearch.pipeline.measurements import has_measurements, save_measurements
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.environment import device_name
from ekgsearch.runtime.progress import Progress
from ekgsearch.workers.training import load_student

log = logging.getLogger(__name__)

SEMANTICS = 1


class Evaluate(Phase):
    """Count right answers of the networks before and after, on the test images in use."""

    kind = PhaseKind.EVALUATE
    name = "evaluate"

    def inputs(self, context: RunContext) -> Inputs:
        """The networks, and the images."""
        setup = context.setup
        return Inputs(
            semantics=SEMANTICS,
            files={
                "full": context.weights_sha256("pretrain"),
                "start": context.weights_sha256("warmup"),
                "slim": context.sha256_of(SEARCH, slim_file(SEARCH)),
                "final": context.weights_sha256("finetune-slim"),
            },
            images={"test": setup.test.content_hash, "recalibration": setup.selection(setup.train_ids)},
            network=setup.network_identity,
            choices={"seed": setup.job.seed, "subnetwork": final_subnetwork(context).sha256},
            device=setup.device,
            threads=setup.job.cluster.threads,
        )

    def run(self, context: RunContext) -> Result:
        """Evaluate the four networks."""
        EXACT.set_backends()  # a search in this process may have asked for another arithmetic
        with _charged(context):
            return Result(fields=_correct(context, *_full_and_final(context), torch.device(context.setup.device)))


def measure_latencies(context: RunContext) -> None:
    """Measure the networks before and after on this machine, unless that is done: part of no phase's result."""
    if not has_measurements(context):
        EXACT.set_backends()
        with _charged(context):
            found = _latencies(context, *_full_and_final(context), torch.device(context.setup.device))
            save_measurements(context, found)


@contextmanager
def _charged(context: RunContext) -> Iterator[None]:
    device, devices = device_name(torch.device(context.setup.device)), context.setup.num_local_devices
    with context.charged(PhaseKind.EVALUATE, Evaluate.name, device, devices) as clock, clock.working(devices):
        yield


def _full_and_final(context: RunContext) -> tuple[nn.Module, nn.Module]:
    full = context.setup.workload(context.weights("pretrain")).open_network()
    return full, load_student(context.workload, final_subnetwork(context), context.weights("finetune-slim"))


def _correct(context: RunContext, full: nn.Module, final: nn.Module, device: torch.device) -> dict[str, int]:
    """Correct test images of every network."""
    setup = context.setup
    searched = load_student(context.workload, final_subnetwork(context), context.slim_weights(SEARCH))
    normalise = context.workload.normalisation
    correct: dict[str, int] = {}
    with Progress("evaluation", 4 * len(setup.test), "images", log) as progress:

        def measure(name: str, network: nn.Module) -> None:
            result = evaluate(network.to(device), setup.test, normalise, World(device), check=context.check)
            correct[name] = result.correct
            progress.advance(result.images, **{name: f"{result.top1:.2f}"})

        measure("full", full)
        measure("searched", searched)
        _recalibrate(context, searched, device)
        measure("recalibrated", searched)
        measure("final", final)
    return {**correct, "images": len(setup.test)}


def _latencies(context: RunContext, full: nn.Module, final: nn.Module, device: torch.device) -> dict[str, float]:
    """How long the full and the final network take for one image and for 64, and how sure their ratio is."""
    latencies: dict[str, float] = {}
    for batch_size in (1, 64):
        shape = context.setup.net.input_shape
        found = compare_latencies(full, final, shape, batch_size, device, check=context.check)
        latencies[f"full_batch{batch_size}_ms"] = found.full_ms
        latencies[f"slim_batch{batch_size}_ms"] = found.slim_ms
        latencies[f"ratio_batch{batch_size}"] = found.ratio
        latencies[f"ratio_low_batch{batch_size}"] = found.ratio_low
        latencies[f"ratio_high_batch{batch_size}"] = found.ratio_high
        latencies[f"noise_batch{batch_size}"] = found.noise
    return latencies


def _recalibrate(context: RunContext, network: nn.Module, device: torch.device) -> None:
    """Average the running statistics again over training images in use, un-augmented, in a fixed random order."""
    setup = context.setup
    data = TrainData(
        setup.dataset.train,
        context.workload.normalisation,
        ids=setup.train_ids,
        max_damaged=setup.data.loading.max_damaged,
    )
    recalibrate_on(network.to(device), data, images=RECALIBRATION_IMAGES, seed=setup.job.seed, check=context.check)
