"""The study of random sub-networks: does the loss before fine-tuning, or its curvature, predict the loss after it."""

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.slim import slim
from ekgsearch.data.subset import batches
from ekgsearch.experiment import Job
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.pipeline.finetune import finetune_config
from ekgsearch.pipeline.landscape import Landscape, measure_landscape
from ekgsearch.pipeline.pretrain import pretrain
from ekgsearch.pipeline.setup import set_up
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.pipeline.train import driver_threads
from ekgsearch.pipeline.warmup import warm_up
from ekgsearch.records import Phase, Subnetwork
from ekgsearch.rows import StudyRow
from ekgsearch.runtime.environment import device_name
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.runtime.listener import Listeners
from ekgsearch.runtime.progress import Progress
from ekgsearch.runtime.progress_listener import ProgressListener
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.search.ekg import EkgSettings
from ekgsearch.search.random_walk import random_subnetwork
from ekgsearch.search.steps import Quirk
from ekgsearch.sections.base import MOST, Count, Positive, Section
from ekgsearch.sections.search import OF_CANDIDATES
from ekgsearch.storage.files import make_folder, remove_partials
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tables import write_table
from ekgsearch.workers.backend import Backend
from ekgsearch.workers.training import Outcome, TrainingSpec, TrainingTask, load_student

log = logging.getLogger(__name__)

Condition = Literal["eigenvalue_ratio", "relative"]


IDLE_QUIRKS: tuple[Quirk, ...] = ("nominal_batch_means", "sequential_statistics")
"""Quirks of the evaluation of candidates; the others change the warm-up, or which channels a step removes."""


class StudySection(Section):
    """Random sub-networks and what is measured on them."""

    subnetworks: int = Field(50, ge=3, le=MOST, description="random sub-networks")
    by_l1: Count = Field(10, description="how many of them lose channels of small L1 norm, not random ones")
    points: int = Field(21, ge=2, le=MOST, description="points along the gradient at which the curvature is measured")
    radius: float = Field(0.1, gt=0, description="farthest of these points, as a multiple of the gradient")
    lanczos_iterations: Positive = Field(30, description="Hessian-vector products at each point")
    condition: Condition = Field(
        "eigenvalue_ratio",
        description="condition number that is plotted: |lowest / highest eigenvalue| of the Hessian, or the relative "
        "condition number; the table has both",
    )

    @model_validator(mode="after")
    def _agree(self) -> "StudySection":
        if self.by_l1 > self.subnetworks:
            raise ValueError(f"study.by_l1 = {self.by_l1} is more than study.subnetworks = {self.subnetworks}")
        return self


class StudyJob(Job):
    """A job whose search cuts at random, many times over."""

    UNHASHED: ClassVar[dict[str, Any]] = {**Job.UNHASHED, "study": {"condition"}}

    study: StudySection = Field(default_factory=StudySection)

    @model_validator(mode="after")
    def _is_plain(self) -> "StudyJob":
        if self.finetune.objective != "plain":
            raise ValueError(
                f"finetune.objective = {self.finetune.objective}: the study fine-tunes by cross-entropy alone; "
                "use plain"
            )
        idle = self.search.changed(("method", *OF_CANDIDATES))
        idle += [f"search.quirks {quirk}" for quirk in IDLE_QUIRKS if quirk in self.search.quirks]
        idle += ["search_run"] if self.search_run is not None else []
        idle += ["finetune.baselines"] if self.finetune.baselines else []
        if idle:
            raise ValueError(
                f"a study cuts at random and evaluates no candidates: {', '.join(idle)} would do nothing; leave it out"
            )
        return self


def run_study(job: StudyJob, backend: Backend, *, continue_anyway: bool = False) -> None:
    """Run a study to its end, or continue it after the last sub-network that is in its journal.

    The result is the table ``tables/study.parquet`` in the run directory.

    Args:
        job: what to do; its run directory exists.
        backend: where trainings run.
        continue_anyway: see `ekgsearch.pipeline.run.run_job`.

    Raises:
        EkgError: as `ekgsearch.pipeline.run.run_job`.
    """
    with driver_threads(job):
        _run(job, backend, continue_anyway=continue_anyway)


def _run(job: StudyJob, backend: Backend, *, continue_anyway: bool) -> None:
    run_dir, section = job.run_dir, job.study
    setup = set_up(job, backend.cluster_has_gpus, in_run=True)
    with Journal.open(run_dir / "journal.jsonl") as journal:
        remove_partials(run_dir)
        start_or_check(setup, journal, continue_anyway)
        state = RunState(setup, journal, Ledger(run_dir / "ledger", job.run_name), backend)
        pretrain(state)
        warm_up(state)
        done = len(state.lines("study"))
        with Progress("study", section.subnetworks, "sub-networks", log) as progress:
            progress.advance(done)
            for index in range(done, section.subnetworks):
                line = _study_one(state, job, index)
                journal.append("study", **line)
                progress.advance(1, potential_loss=f"{line['potential_loss']:.4f}")
        _write_table(state, job)


def _study_one(state: RunState, job: StudyJob, index: int) -> dict[str, object]:
    """Make one random sub-network, look at its loss, fine-tune it and look again."""
    setup, section = state.setup, job.study
    criterion: Literal["l1", "random"] = "l1" if index >= section.subnetworks - section.by_l1 else "random"
    graph, device = state.open_graph(), torch.device(setup.device)
    settings = EkgSettings(step=job.search.step, trim=job.search.trim, quirks=frozenset(job.search.quirks))
    seed = sub_seed(job.seed, "study", index)
    subnetwork = random_subnetwork(graph, setup.budget, criterion=criterion, seed=seed, settings=settings)
    devices = setup.num_local_devices
    with state.ledger.attempt(Phase.EVALUATE, device_name(device), devices) as clock, clock.working(devices):
        found = _landscape(state, job, graph, subnetwork)
    weights = _fine_tuned(state, job, subnetwork, index)
    network = load_student(state.workload, subnetwork, weights).to(device)
    result = evaluate(network, setup.test, state.workload.normalisation, World(device))
    return {
        "index": index,
        "criterion": criterion,
        "kept": subnetwork.to_dict(),
        "validation_loss": found.loss,
        "eigenvalue_ratio": found.eigenvalue_ratio,
        "relative": found.relative,
        "potential_loss": result.loss,
        "correct": result.correct,
        "images": result.images,
    }


def _landscape(state: RunState, job: StudyJob, graph: ChannelGraph, subnetwork: Subnetwork) -> Landscape:
    setup, section = state.setup, job.study
    device, train = torch.device(setup.device), setup.dataset.train
    network = slim(graph, subnetwork).to(device)
    parts = [
        (state.workload.normalisation(train.read(ids).to(device)), train.labels[ids].to(device))
        for ids in batches(setup.search_ids, job.search.batch_size)
    ]
    return measure_landscape(
        network,
        parts,
        points=section.points,
        radius=section.radius,
        iterations=section.lanczos_iterations,
        seed=sub_seed(job.seed, "lanczos"),
    )


def _fine_tuned(state: RunState, job: StudyJob, subnetwork: Subnetwork, index: int) -> Path:
    """Weights of a sub-network after plain fine-tuning."""
    setup, section = state.setup, job.finetune
    ids = None if setup.train_ids is None else tuple(setup.train_ids.tolist())
    name = f"study{index:03d}"
    spec = TrainingSpec(
        run=job.run_name,
        phase=Phase.FINETUNE,
        workload=setup.workload(state.start_weights, setup.devices.finetune),
        tasks=(
            TrainingTask(
                name=name, config=finetune_config(state, "plain"), subnetwork=subnetwork, ids=ids, evaluate=False
            ),
        ),
        bank=None,
        threads=job.cluster.threads_per_worker,
    )
    devices = section.workers * spec.devices_per_worker
    with state.ledger.attempt(Phase.FINETUNE, setup.devices.name(setup.devices.finetune), devices) as clock:
        shown = Listeners([ProgressListener(log)])
        state.backend.train(spec, folder=state.training_folder, workers=section.workers, clock=clock, listener=shown)
    return Outcome.read(state.training_folder, name).weights


def _write_table(state: RunState, job: StudyJob) -> None:
    setup = state.setup
    rows = []
    for line in state.lines("study"):
        images = line.get("images", len(setup.dataset.test))  # not recorded before `data.test_images` was there
        costs = cost(setup.graph, Subnetwork.of(line["kept"]), setup.budget.counter)
        rows.append(
            StudyRow(
                run=job.run_name,
                index=line["index"],
                criterion=line["criterion"],
                kept_macs=costs.macs,
                macs_reduction=1 - costs.macs / setup.full_costs.macs,
                validation_loss=line["validation_loss"],
                eigenvalue_ratio=line["eigenvalue_ratio"],
                relative_condition=line["relative"],
                potential_loss=line["potential_loss"],
                final_top1=100 * line["correct"] / images,
                test_images=images,
            )
        )
    path = state.folder / "tables" / "study.parquet"
    make_folder(path.parent)
    write_table(path, rows, StudyRow)
