"""The phases after the search: fine-tune the slim network and its baselines, evaluate, write the tables."""

import logging
from dataclasses import replace

import torch
from torch import nn

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.slim import slim
from ekgsearch.finetune.average import RECALIBRATION_IMAGES, recalibrate_on
from ekgsearch.finetune.config import BANK_OBJECTIVES, FinetuneConfig, Objective, TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.pipeline.augmenting import finetune_augmentation
from ekgsearch.pipeline.latency import compare_latencies
from ekgsearch.pipeline.preparing import training_config
from ekgsearch.pipeline.searching import bank_address, structure_metadata
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.tables import final_subnetwork, has_measurements, save_measurements, write_tables
from ekgsearch.pipeline.training import Outcome, TrainingPlan, TrainingTask, load_student
from ekgsearch.records import Phase, Subnetwork
from ekgsearch.runtime.environment import device_name
from ekgsearch.runtime.progress import Progress
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.search.uniform import uniform_width
from ekgsearch.storage.tensors import save_tensors

log = logging.getLogger(__name__)

FINETUNE_OPTIONS = (
    "teacher_gate",
    "label_smoothing",
    "embedding_weight",
    "contrast_temperature",
    "negatives",
    "head_width",
    "projection_width",
    "target_momentum",
    "ema_decay",
    "average_last",
    "recalibrate_images",
    "accumulate",
    "synchronised_norm",
    "precision",
    "channels_last",
    "compile",
    "max_skipped",
    "max_rollbacks",
)
"""Fields of the job's section `finetune` that the training takes as they are."""


def finetune(state: RunState) -> None:
    """Train the slim network and the baselines that the job asks for, and commit the results."""
    if state.line("finetune"):
        state.committed("finetune")
        return
    setup, section = state.setup, state.setup.job.finetune
    plan = TrainingPlan(
        run=setup.job.run_name,
        phase=Phase.FINETUNE,
        workload=setup.workload(state.start_weights, setup.devices.finetune),
        tasks=finetuning_tasks(state),
        bank=bank_address(state) if section.objective in BANK_OBJECTIVES else None,
        threads=setup.job.cluster.threads_per_worker,
        checkpoint_every_steps=section.checkpoint_every_steps,
    )
    device = setup.devices.name(setup.devices.finetune)
    with state.ledger.attempt(Phase.FINETUNE, device, section.workers * plan.devices_per_worker) as clock:
        state.backend.train(plan, folder=state.training_folder, workers=section.workers, clock=clock)
    subnetwork = final_subnetwork(state)
    outcome = Outcome.read(state.training_folder, "slim")
    network = load_student(state.workload, subnetwork, outcome.weights)
    metadata = structure_metadata(state, subnetwork)
    for name, weights in outcome.averages.items():
        averaged = load_student(state.workload, subnetwork, weights)
        save_tensors(state.folder / f"final_{name}.safetensors", averaged.state_dict(), metadata)
    path = state.folder / "final.safetensors"
    save_tensors(path, network.state_dict(), metadata)
    state.commit("finetune", path)
    write_tables(state)


def finetuning_tasks(state: RunState) -> tuple[TrainingTask, ...]:
    """The slim network with the job's objective, then the baselines with plain cross-entropy."""
    setup, section = state.setup, state.setup.job.finetune
    ids = None if setup.train_ids is None else tuple(setup.train_ids.tolist())
    found = final_subnetwork(state)
    students: list[tuple[str, Objective, Subnetwork]] = [("slim", section.objective, found)]
    if "plain" in section.baselines and section.objective != "plain":
        students.append(("plain", "plain", found))
    if "uniform" in section.baselines and setup.job.search.method != "uniform":
        students.append(("uniform", "plain", uniform_width(state.open_graph(), setup.budget)))
    return tuple(
        TrainingTask(name=name, config=finetune_config(state, objective), subnetwork=subnetwork, ids=ids, evaluate=True)
        for name, objective, subnetwork in students
    )


def finetune_config(state: RunState, objective: Objective) -> FinetuneConfig:
    """How the section `finetune` of the job trains a network with an objective."""
    setup, section = state.setup, state.setup.job.finetune
    config = training_config(
        section,
        objective=objective,
        augmentation=finetune_augmentation(setup.job),
        seed=sub_seed(setup.job.finetune_seed, "finetune"),
        num_evaluations=20,
    )
    temperature = section.temperature or (10.0 if setup.dataset.num_classes >= 1000 else 4.0)
    options = {name: getattr(section, name) for name in FINETUNE_OPTIONS}
    return replace(config, temperature=temperature, **options)


def evaluate_and_write_tables(state: RunState) -> None:
    """Measure accuracy and latency of the networks before and after, then write all tables."""
    is_evaluated = state.line("evaluate") is not None
    if not is_evaluated or not has_measurements(state):
        EXACT.set_backends()  # a search in this process may have asked for another arithmetic
        device, devices = torch.device(state.setup.device), state.setup.num_local_devices
        with state.ledger.attempt(Phase.EVALUATE, device_name(device), devices) as clock, clock.working(devices):
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
