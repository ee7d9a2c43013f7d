"""The phases before the search: train the unpruned network where no weights are given, and warm it up."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ekgsearch.data.views import Augmentation
from ekgsearch.experiment import Job
from ekgsearch.finetune.config import FinetuneConfig, Objective
from ekgsearch.pipeline.augmenting import pretrain_augmentation
from ekgsearch.pipeline.setup import Setup
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.training import Outcome, TrainingPlan, TrainingTask, run_plan
from ekgsearch.records import Phase
from ekgsearch.runtime.environment import device_name, torch_threads
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.sections.training import TrainingFields
from ekgsearch.storage.tensors import save_tensors

log = logging.getLogger(__name__)

NO_AUGMENTATION = Augmentation(pad=0, flip=False, brightness=0, contrast=0, saturation=0)


@contextmanager
def driver_threads(job: Job) -> Iterator[None]:
    """Let this process compute with the threads that its job names, and say so."""
    count = job.cluster.threads
    log.info("this process computes with %s (cluster.threads)", "1 thread" if count == 1 else f"{count} threads")
    with torch_threads(count):
        yield


def pretrain(state: RunState) -> None:
    """Commit the weights of the unpruned network: the given ones, or trained ones."""
    if state.line("pretrain"):
        state.committed("pretrain")
        return
    setup, section = state.setup, state.setup.job.pretrain
    path = save_initial(setup, state.folder)
    if setup.job.net.weights is None:
        config = training_config(
            section,
            objective="plain",
            augmentation=pretrain_augmentation(setup.job),
            seed=sub_seed(setup.job.seed, "pretrain"),
            num_evaluations=10,
        )
        ids = None if setup.train_ids is None else tuple(setup.train_ids.tolist())
        task = TrainingTask(name="full", config=config, subnetwork=None, ids=ids, evaluate=True)
        path = _train_here(state, Phase.PRETRAIN, task, path)
    state.commit("pretrain", path)


def save_initial(setup: Setup, folder: Path) -> Path:
    """Write the weights that a run begins with, given or fresh; equal weights give equal bytes."""
    path = folder / "initial.safetensors"
    save_tensors(path, setup.network.state_dict(), {"network": setup.net.name})
    return path


def warm_up(state: RunState) -> None:
    """Commit the weights after a short training on the warm-up subset."""
    if state.line("warmup"):
        state.committed("warmup")
        return
    setup, section = state.setup, state.setup.job.warmup
    path = state.committed("pretrain")
    assert path is not None
    if section.epochs:
        config = warmup_config(setup.job, len(setup.warmup_ids))
        ids = tuple(setup.warmup_ids.tolist())
        task = TrainingTask(name="warmup", config=config, subnetwork=None, ids=ids, evaluate=False)
        path = _train_here(state, Phase.WARMUP, task, path)
    state.commit("warmup", path)


def warmup_config(job: Job, num_images: int) -> FinetuneConfig:
    """How the network is warmed up on so many images.

    With the quirk `halved_warmup_divisor` the gradient of the loss is doubled and that of the weight decay is not:
    twice the learning rate and half the decay.
    """
    section = job.warmup
    factor = 2 if "halved_warmup_divisor" in job.search.quirks else 1
    return FinetuneConfig(
        objective="plain",
        epochs=section.epochs,
        batch_size=min(section.batch_size, num_images),
        learning_rate=section.learning_rate * factor,
        milestones=(),
        weight_decay=section.weight_decay / factor,
        augmentation=NO_AUGMENTATION,
        seed=sub_seed(job.seed, "warmup"),
        shuffle=False,
    )


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


def _train_here(state: RunState, phase: Phase, task: TrainingTask, weights: Path) -> Path:
    """Train one network in this process, with its threads or on its device; returns the file of its weights."""
    setup = state.setup
    devices = setup.num_local_devices
    plan = TrainingPlan(
        run=setup.job.run_name,
        phase=phase,
        workload=setup.workload(weights),
        tasks=(task,),
        bank=None,
        threads=setup.job.cluster.threads,
    )
    device = device_name(torch.device(setup.device))
    with state.ledger.attempt(phase, device, devices) as clock, clock.working(devices), torch_threads(plan.threads):
        run_plan(plan, state.training_folder)
    return Outcome.read(state.training_folder, task.name).weights
