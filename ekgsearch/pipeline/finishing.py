"""The phases after the search: fine-tune the slim network and its baselines, evaluate, write the tables."""

import logging
from dataclasses import replace

import torch
from torch import nn

from ekgsearch.channels.norm import recalibrate
from ekgsearch.channels.slim import slim
from ekgsearch.data.subset import permutation
from ekgsearch.data.views import Augmentation
from ekgsearch.finetune.config import FinetuneConfig, Objective
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.pipeline.latency import median_latencies_ms
from ekgsearch.pipeline.preparing import training_config
from ekgsearch.pipeline.searching import bank_address, structure_metadata
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.tables import final_subnetwork, save_measurements, write_tables
from ekgsearch.pipeline.training import Outcome, TrainingPlan, TrainingTask, load_student
from ekgsearch.records import Phase, Subnetwork
from ekgsearch.runtime.environment import device_name
from ekgsearch.runtime.progress import Progress
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.search.uniform import uniform_width
from ekgsearch.storage.tensors import save_tensors

log = logging.getLogger(__name__)

RECALIBRATION_IMAGES = 10_000
"""Training images over which the running statistics are averaged anew, at most."""


def finetune(state: RunState) -> None:
    """Train the slim network and the baselines that the job asks for, and commit the results."""
    if state.line("finetune"):
        state.committed("finetune")
        return
    setup, section = state.setup, state.setup.job.finetune
    plan = TrainingPlan(
        run=setup.job.run_name,
        phase=Phase.FINETUNE,
        workload=state.workload,
        tasks=finetuning_tasks(state),
        bank=bank_address(state) if section.objective == "ekg" else None,
        threads=setup.job.cluster.threads_per_worker,
    )
    device = device_name(torch.device(setup.device))
    threads = torch.get_num_threads()
    with state.ledger.attempt(Phase.FINETUNE, device, section.workers) as clock:
        state.backend.train(plan, folder=state.training_folder, workers=section.workers, clock=clock)
    torch.set_num_threads(threads)
    subnetwork = final_subnetwork(state)
    outcome = Outcome.read(state.training_folder, "slim")
    network = load_student(state.workload, subnetwork, outcome.weights)
    path = state.folder / "final.safetensors"
    save_tensors(path, network.state_dict(), structure_metadata(state, subnetwork))
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
        TrainingTask(name=name, config=_config(state, objective), subnetwork=subnetwork, ids=ids, evaluate=True)
        for name, objective, subnetwork in students
    )


def _config(state: RunState, objective: Objective) -> FinetuneConfig:
    setup, section = state.setup, state.setup.job.finetune
    config = training_config(
        section,
        objective=objective,
        augmentation=Augmentation(
            pad=section.pad,
            flip=section.flip,
            brightness=section.brightness,
            contrast=section.contrast,
            saturation=section.saturation,
        ),
        seed=sub_seed(setup.job.seed, "finetune"),
        num_evaluations=20,
    )
    temperature = section.temperature or (10.0 if setup.dataset.num_classes >= 1000 else 4.0)
    return replace(config, temperature=temperature, teacher_gate=section.teacher_gate)


def evaluate_and_write_tables(state: RunState) -> None:
    """Measure accuracy and latency of the networks before and after, then write all tables."""
    setup = state.setup
    if not state.line("evaluate"):
        device, devices = torch.device(setup.device), setup.num_local_devices
        with state.ledger.attempt(Phase.EVALUATE, device_name(device), devices) as clock, clock.working(devices):
            correct, latencies = _measure(state, device)
        save_measurements(state, latencies)
        state.journal.append("evaluate", **correct)
    write_tables(state)


def _measure(state: RunState, device: torch.device) -> tuple[dict[str, int], dict[str, float]]:
    """Correct test images of every network, and the latencies of the full and the final one."""
    setup = state.setup
    subnetwork = final_subnetwork(state)
    full = setup.workload(state.committed("pretrain") or state.start_weights).open_network()
    searched = slim(state.open_graph(), subnetwork)
    final = load_student(state.workload, subnetwork, state.folder / "final.safetensors")
    normalise = state.workload.normalisation
    correct: dict[str, int] = {}
    with Progress("evaluation", 4 * len(setup.dataset.test), "images", log) as progress:

        def measure(name: str, network: nn.Module) -> None:
            result = evaluate(network.to(device), setup.dataset.test, normalise, World(device))
            correct[name] = result.correct
            progress.advance(result.images, **{name: f"{result.top1:.2f}"})

        measure("full", full)
        measure("searched", searched)
        _recalibrate(state, searched, device)
        measure("recalibrated", searched)
        measure("final", final)
    latencies = {}
    for batch_size in (1, 64):
        found = median_latencies_ms({"full": full, "slim": final}, setup.net.input_shape, batch_size, device)
        latencies.update({f"{name}_batch{batch_size}_ms": value for name, value in found.items()})
    return {**correct, "images": len(setup.dataset.test)}, latencies


def _recalibrate(state: RunState, network: nn.Module, device: torch.device) -> None:
    """Average the running statistics anew over training images, un-augmented, in a fixed random order."""
    setup = state.setup
    order = permutation(len(setup.dataset.train), setup.job.seed, 0)[:RECALIBRATION_IMAGES]
    normalise = state.workload.normalisation
    recalibrate(network, (normalise(setup.dataset.train.read(ids).to(device)) for ids in torch.split(order, 250)))
