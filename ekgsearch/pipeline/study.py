"""The study of random sub-networks: does the loss before fine-tuning, or its curvature, predict the loss after it."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.slim import slim
from ekgsearch.data.subset import batches
from ekgsearch.experiment import Job
from ekgsearch.fields import MOST, Count, Mark, Positive, Section
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.methods.ekg.quirks import Quirk
from ekgsearch.methods.ekg.random_walk import random_subnetwork
from ekgsearch.methods.ekg.search import EkgSettings
from ekgsearch.methods.ekg.section import OF_CANDIDATES, EkgSection
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.finetune import finetune_config
from ekgsearch.pipeline.landscape import Landscape, measure_landscape
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.pretrain import Pretrain
from ekgsearch.pipeline.run import opened_run, run_phases
from ekgsearch.pipeline.train import train_by_backend
from ekgsearch.pipeline.warmup import Warmup
from ekgsearch.records import PhaseKind, Subnetwork
from ekgsearch.rows.study import StudyRow
from ekgsearch.runtime.environment import device_name
from ekgsearch.runtime.listener import SILENT, Listener
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.tables import write_table
from ekgsearch.workers.backend import Backend
from ekgsearch.workers.training import TrainingTask, load_student

SEMANTICS = 1

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
    condition: Annotated[Condition, Mark.NO_RESULT] = Field(
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

    search: EkgSection
    study: StudySection = Field(default_factory=StudySection)

    @model_validator(mode="after")
    def _is_plain(self) -> "StudyJob":
        if self.finetune.objective != "plain":
            raise ValueError(
                f"finetune.objective = {self.finetune.objective}: the study fine-tunes by cross-entropy alone; "
                "use plain"
            )
        idle = self.search.changed(OF_CANDIDATES)
        idle += [f"search.quirks {quirk}" for quirk in IDLE_QUIRKS if quirk in self.search.quirks]
        idle += ["search_run"] if self.search_run is not None else []
        idle += ["finetune.baselines"] if self.finetune.baselines else []
        if idle:
            raise ValueError(
                f"a study cuts at random and evaluates no candidates: {', '.join(idle)} would do nothing; leave it out"
            )
        return self


def run_study(job: StudyJob, backend: Backend, *, listener: Listener = SILENT, continue_anyway: bool = False) -> None:
    """Run a study to its end, or continue it after the last sub-network that is in its journal.

    The result is the table ``tables/study.parquet`` in the run directory.

    Args:
        job: what to do; its run directory exists.
        backend: where trainings run.
        listener: told of what happens; may ask for a clean stop.
        continue_anyway: see `ekgsearch.pipeline.run.run_job`.

    Raises:
        EkgError: as `ekgsearch.pipeline.run.run_job`.
    """

    def phases(_: Job) -> tuple[Phase, ...]:
        return Pretrain(), Warmup(), *(StudyOne(job, index) for index in range(job.study.subnetworks))

    with opened_run(job, backend, phases, listener=listener, continue_anyway=continue_anyway) as context:
        run_phases(context, after_each=_write_table)


class StudyOne(Phase):
    """Make one random sub-network, look at its loss, fine-tune it and look again."""

    kind = PhaseKind.FINETUNE

    def __init__(self, job: StudyJob, index: int) -> None:
        """Choose the sub-network.

        Args:
            job: the study.
            index: number of the sub-network, from 0.
        """
        self.name = f"study-{index:03d}"
        self.training = f"study{index:03d}"
        self._job = job
        self._index = index
        is_l1 = index >= job.study.subnetworks - job.study.by_l1
        self._criterion: Literal["l1", "random"] = "l1" if is_l1 else "random"

    def inputs(self, context: RunContext) -> Inputs:
        """How it is drawn, measured and trained."""
        setup, job = context.setup, self._job
        study = {name: value for name, value in job.study.identity().items() if name not in ("subnetworks", "by_l1")}
        return Inputs(
            semantics=SEMANTICS,
            sections={"study": study, "search": job.search.identity(), "finetune": job.finetune.identity()},
            files={"weights": context.weights_sha256("warmup")},
            images={
                "search": setup.selection(setup.search_ids),
                "train": setup.selection(setup.train_ids),
                "test": setup.test.content_hash,
                "loader": setup.loader,
            },
            network=setup.network_identity,
            choices={"index": self._index, "criterion": self._criterion, "seeds": [job.seed, job.finetune_seed]},
            device=setup.devices.finetune,
            threads=job.cluster.threads_per_worker,
        )

    def run(self, context: RunContext) -> Result:
        """Measure, fine-tune, measure."""
        setup, job = context.setup, self._job
        graph, device = context.open_graph(), torch.device(setup.device)
        settings = EkgSettings(step=job.search.step, trim=job.search.trim, quirks=frozenset(job.search.quirks))
        seed = sub_seed(job.seed, "study", self._index)
        subnetwork = random_subnetwork(graph, setup.budget, criterion=self._criterion, seed=seed, settings=settings)
        devices = setup.num_local_devices
        with (
            context.charged(PhaseKind.EVALUATE, self.name, device_name(device), devices) as clock,
            clock.working(devices),
        ):
            found = self._landscape(context, graph, subnetwork)
        config, ids = finetune_config(context, "plain"), setup.train_id_list
        task = TrainingTask(name=self.training, config=config, subnetwork=subnetwork, ids=ids, evaluate=False)
        trained = train_by_backend(context, self.name, task)
        network = load_student(context.workload, subnetwork, context.folder / trained.fields["weights"]).to(device)
        result = evaluate(network, setup.test, context.workload.normalisation, World(device), check=context.check)
        measured = {
            "index": self._index,
            "criterion": self._criterion,
            "kept": subnetwork.to_dict(),
            "validation_loss": found.loss,
            "eigenvalue_ratio": found.eigenvalue_ratio,
            "relative": found.relative,
            "potential_loss": result.loss,
            "correct": result.correct,
            "images": result.images,
        }
        return replace(trained, fields={**trained.fields, **measured})

    def _landscape(self, context: RunContext, graph: ChannelGraph, subnetwork: Subnetwork) -> Landscape:
        setup, job = context.setup, self._job
        device, train = torch.device(setup.device), setup.dataset.train
        network = slim(graph, subnetwork).to(device)
        parts = [
            (context.workload.normalisation(train.read(ids).to(device)), train.labels[ids].to(device))
            for ids in batches(setup.search_ids, job.search.batch_size)
        ]
        return measure_landscape(
            network,
            parts,
            points=job.study.points,
            radius=job.study.radius,
            iterations=job.study.lanczos_iterations,
            seed=sub_seed(job.seed, "lanczos"),
        )


def _write_table(context: RunContext) -> None:
    setup = context.setup
    rows = []
    for line in (line for line in context.lines(PhaseKind.FINETUNE) if line["phase"].startswith("study-")):
        costs = cost(setup.graph, Subnetwork.of(line["kept"]), setup.budget.counter)
        rows.append(
            StudyRow(
                run=setup.job.run_name,
                index=line["index"],
                criterion=line["criterion"],
                kept_macs=costs.macs,
                macs_reduction=1 - costs.macs / setup.full_costs.macs,
                validation_loss=line["validation_loss"],
                eigenvalue_ratio=line["eigenvalue_ratio"],
                relative_condition=line["relative"],
                potential_loss=line["potential_loss"],
                final_top1=100 * line["correct"] / line["images"],
                test_images=line["images"],
            )
        )
    path = context.folder / "tables" / "study.parquet"
    make_folder(path.parent)
    write_table(path, rows, StudyRow)
