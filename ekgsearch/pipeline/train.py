"""Trainings of a run: their configuration from a section of the job, and those that this process does itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ekgsearch.data.views import Augmentation
from ekgsearch.experiment import Job
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.objectives.registry import ObjectiveName
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.phase import Phase, Result
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.environment import device_name, torch_threads
from ekgsearch.sections.training import TrainingFields
from ekgsearch.workers.training import BankAddress, Outcome, TrainingSpec, TrainingTask, outcome_path, train_all

log = logging.getLogger(__name__)


@contextmanager
def driver_threads(job: Job) -> Iterator[None]:
    """Let this process compute with the threads that its job names, and say so."""
    count = job.cluster.threads
    log.info("this process computes with %s (cluster.threads)", "1 thread" if count == 1 else f"{count} threads")
    with torch_threads(count):
        yield


def training_config(
    section: TrainingFields, *, objective: ObjectiveName, augmentation: Augmentation, seed: int, num_evaluations: int
) -> FinetuneConfig:
    """Turn a training section of the job into a training configuration; milestones become epochs."""
    return FinetuneConfig(
        objective=objective,
        epochs=section.epochs,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        milestones=tuple(sorted({round(share * section.epochs) for share in section.milestones} - {0})),
        decay=section.decay,
        momentum=section.momentum,
        nesterov=section.nesterov,
        warmup_epochs=section.warmup_epochs,
        weight_decay=section.weight_decay,
        augmentation=augmentation,
        seed=seed,
        evaluate_every=max(1, section.epochs // num_evaluations),
    )


def train_here(context: RunContext, phase: Phase, task: TrainingTask, weights: Path) -> None:
    """Train one network in this process, with its threads or on its device."""
    setup = context.setup
    devices = setup.num_local_devices
    spec = TrainingSpec(
        run=setup.job.run_name,
        phase=phase.kind,
        instance=phase.name,
        workload=setup.workload(weights),
        tasks=(task,),
        bank=None,
        threads=setup.job.cluster.threads,
    )
    device = device_name(torch.device(setup.device))
    with (
        context.charged(phase.kind, phase.name, device, devices) as clock,
        clock.working(devices),
        torch_threads(spec.threads),
    ):
        train_all(spec, context.training_folder, listener=context.listener)


def train_by_backend(context: RunContext, instance: str, task: TrainingTask, bank: BankAddress | None = None) -> Result:
    """Fine-tune one network in however many processes the job asks for; its weights and the record of its epochs.

    Args:
        context: the run.
        instance: the phase that it belongs to.
        task: the training, which starts from the weights after the warm-up.
        bank: memory bank, where the objective needs it.
    """
    setup, section = context.setup, context.setup.job.finetune
    spec = TrainingSpec(
        run=setup.job.run_name,
        phase=PhaseKind.FINETUNE,
        instance=instance,
        workload=setup.workload(context.start_weights, setup.devices.finetune),
        tasks=(task,),
        bank=bank,
        threads=setup.job.cluster.threads_per_worker,
        checkpoint_every_steps=section.checkpoint_every_steps,
    )
    device, devices = setup.devices.name(setup.devices.finetune), section.workers * spec.devices_per_worker
    with context.charged(PhaseKind.FINETUNE, instance, device, devices) as clock:
        context.backend.train(
            spec, folder=context.training_folder, workers=section.workers, clock=clock, listener=context.listener
        )
    return outcome_files(context, task.name)


def outcome_files(context: RunContext, training: str) -> Result:
    """The result of a phase that has trained a network: its weights, and next to them the record of its epochs."""
    outcome, record = Outcome.read(context.training_folder, training), outcome_path(context.training_folder, training)
    weights, extra = (path.relative_to(context.folder).as_posix() for path in (outcome.weights, record))
    return Result(files=(weights,), extras=(extra,), fields={"weights": weights})
