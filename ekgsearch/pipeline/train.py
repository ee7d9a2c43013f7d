"""Trainings of a run: their configuration from a section of the job, and those that this process does itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ekgsearch.data.views import Augmentation
from ekgsearch.experiment import Job
from ekgsearch.finetune.config import FinetuneConfig, Objective
from ekgsearch.pipeline.state import RunState
from ekgsearch.records import Phase
from ekgsearch.runtime.environment import device_name, torch_threads
from ekgsearch.runtime.listener import Listeners
from ekgsearch.runtime.progress_listener import ProgressListener
from ekgsearch.sections.training import TrainingFields
from ekgsearch.workers.training import Outcome, TrainingSpec, TrainingTask, train_all

log = logging.getLogger(__name__)


@contextmanager
def driver_threads(job: Job) -> Iterator[None]:
    """Let this process compute with the threads that its job names, and say so."""
    count = job.cluster.threads
    log.info("this process computes with %s (cluster.threads)", "1 thread" if count == 1 else f"{count} threads")
    with torch_threads(count):
        yield


def training_config(
    section: TrainingFields, *, objective: Objective, augmentation: Augmentation, seed: int, num_evaluations: int
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
        weight_decay=section.weight_decay,
        augmentation=augmentation,
        seed=seed,
        evaluate_every=max(1, section.epochs // num_evaluations),
    )


def train_here(state: RunState, phase: Phase, task: TrainingTask, weights: Path) -> Path:
    """Train one network in this process, with its threads or on its device; returns the file of its weights."""
    setup = state.setup
    devices = setup.num_local_devices
    spec = TrainingSpec(
        run=setup.job.run_name,
        phase=phase,
        workload=setup.workload(weights),
        tasks=(task,),
        bank=None,
        threads=setup.job.cluster.threads,
    )
    device = device_name(torch.device(setup.device))
    with state.ledger.attempt(phase, device, devices) as clock, clock.working(devices), torch_threads(spec.threads):
        train_all(spec, state.training_folder, listener=Listeners([ProgressListener(log)]))
    return Outcome.read(state.training_folder, task.name).weights
