"""The phase that evaluates the networks before and after."""

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
        with evaluating(context):
            return Result(fields=_correct(context, *full_and_final(context), torch.device(context.setup.device)))


@contextmanager
def evaluating(context: RunContext) -> Iterator[None]:
    """Charge a block of work of this process to the evaluation."""
    device, devices = device_name(torch.device(context.setup.device)), context.setup.num_local_devices
    with context.charged(PhaseKind.EVALUATE, Evaluate.name, device, devices) as clock, clock.working(devices):
        yield


def full_and_final(context: RunContext) -> tuple[nn.Module, nn.Module]:
    """The unpruned network, and the slim one after its training."""
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
