"""Fine-tuning of the slim network and its baselines."""

import logging
from dataclasses import replace

from ekgsearch.finetune.config import BANK_OBJECTIVES, FinetuneConfig, Objective
from ekgsearch.pipeline.augmenting import finetune_augmentation
from ekgsearch.pipeline.bank import bank_address
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.structure import structure_metadata
from ekgsearch.pipeline.tables import write_tables
from ekgsearch.pipeline.train import training_config
from ekgsearch.records import Phase, Subnetwork
from ekgsearch.runtime.listener import Listeners
from ekgsearch.runtime.progress_listener import ProgressListener
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.search.uniform import uniform_width
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.training import Outcome, TrainingSpec, TrainingTask, load_student

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
    spec = TrainingSpec(
        run=setup.job.run_name,
        phase=Phase.FINETUNE,
        workload=setup.workload(state.start_weights, setup.devices.finetune),
        tasks=finetuning_tasks(state),
        bank=bank_address(state) if section.objective in BANK_OBJECTIVES else None,
        threads=setup.job.cluster.threads_per_worker,
        checkpoint_every_steps=section.checkpoint_every_steps,
    )
    device = setup.devices.name(setup.devices.finetune)
    with state.ledger.attempt(Phase.FINETUNE, device, section.workers * spec.devices_per_worker) as clock:
        shown = Listeners([ProgressListener(log)])
        state.backend.train(spec, folder=state.training_folder, workers=section.workers, clock=clock, listener=shown)
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
