"""The phase that cuts a network in stages, and trains what is left after each of them but the last."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.cost import cost
from ekgsearch.channels.slim import slim
from ekgsearch.channels.widen import widen
from ekgsearch.errors import BudgetError
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.objectives.registry import ObjectiveName
from ekgsearch.finetune.world import World
from ekgsearch.methods.baselines.section import OneShotSection
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.cutting import Standing, able, baseline_budget, best_cut, cut_inputs
from ekgsearch.pipeline.finetune import finetune_config
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.search import write_found
from ekgsearch.pipeline.train import train_by_backend
from ekgsearch.records import PhaseKind, Subnetwork
from ekgsearch.runtime.environment import device_name
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.tensors import load_tensors, save_tensors
from ekgsearch.workers.training import Outcome, TrainingTask, load_student, outcome_path

log = logging.getLogger(__name__)

SEMANTICS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage whose network was trained.

    Attributes:
        stage: its number, from 1.
        subnetwork: SHA-256 of the channels that it left.
        macs, params: its costs under the counter of the job.
        epochs: of its training.
        top1: accuracy on the test set after it, percent.
        held: whether it fell no further than the job allows.
    """

    stage: int
    subnetwork: str
    macs: int
    params: int
    epochs: int
    top1: float
    held: bool

    @classmethod
    def of(cls, line: dict[str, Any]) -> list[Self]:
        """Those that the journal line of a search in stages tells of."""
        return [cls(**one) for one in line.get("stages", ())]


@dataclass(frozen=True, slots=True)
class _Left:
    """What a stage leaves to the next: the trained slim network, and what stands then."""

    subnetwork: Subnetwork
    slim: Path
    standing: Standing


class Stages(Phase):
    """Cut to ever smaller costs, each time by scores of the weights that were trained last.

    What it leaves still wants the training of the last stage: a phase of its own, like that of any network.
    """

    kind = PhaseKind.SEARCH

    def __init__(
        self, network: str, forms: Sequence[OneShotSection], objective: ObjectiveName, *, search: str, is_baseline: bool
    ) -> None:
        """Choose the method.

        Args:
            network: what tables and files call the network.
            forms: the cuts of a stage; the first one decides which of them is meant.
            objective: what the trainings minimise.
            search: name of the phase.
            is_baseline: whether it cuts to what the search of the job has left, where the job says no budget.
        """
        stages = forms[0].stages
        assert stages is not None, "a cut that is made at once has no stages"
        self.name = search
        self.needs_workers = forms[0].needs_workers
        self._network = network
        self._forms = forms
        self._objective = objective
        self._num_stages = stages
        self._is_baseline = is_baseline

    @property
    def trainings(self) -> list[str]:
        """One for each stage but the last."""
        return [self._training(stage) for stage in range(1, self._num_stages)]

    def check(self, context: RunContext) -> None:
        """Refuse stages that might cut nothing, and cuts that cannot go so far.

        Raises:
            BudgetError: a stage takes less than a channel, or the channel groups do not suffice.
        """
        if context.committed(self.name) is None and context.setup.budget.is_limit:
            able(context, self._forms, context.setup.budget)
            self._check_share(context, context.setup.budget)

    def inputs(self, context: RunContext) -> Inputs:
        """The weights, the method, what it is cut to, and everything that the trainings depend on."""
        setup, job = context.setup, context.setup.job
        cut = cut_inputs(context, SEMANTICS, self._forms, is_baseline=self._is_baseline)
        trained = job.finetune.model_copy(update={"objective": self._objective}).identity()
        images = {"train": setup.selection(setup.train_ids), "test": setup.test.content_hash, "loader": setup.loader}
        return replace(
            cut,
            sections={**cut.sections, "finetune": trained},
            files={**cut.files, "full": context.weights_sha256("pretrain")},
            images={**cut.images, **images},
            choices={**cut.choices, "finetune_seed": job.finetune_seed, "finetune_device": setup.devices.finetune},
        )

    def run(self, context: RunContext) -> Result:
        """Cut and train in turns; a stage that was trained before is not trained again."""
        budget = self._budget(context)
        self._check_share(context, budget)
        standing = Standing(context.setup.graph.full(), context.start_weights)
        forms: Sequence[OneShotSection] = able(context, self._forms, budget)
        lowest, made = self._lowest(context), list[Stage]()
        left: _Left | None = None
        for stage in range(1, self._num_stages):
            cut = best_cut(context, self.name, forms, self._share(context, budget, stage), standing)
            forms = [cut.section]
            trained, top1 = self._train(context, stage, cut.subnetwork, standing)
            made.append(self._stage(context, budget, stage, cut.subnetwork, top1, held=top1 >= lowest))
            log.info("%s: stage %d of %d reaches %.2f %%", self._network, stage, self._num_stages, top1)
            if top1 < lowest:
                log.warning(
                    "%s: stage %d falls below %.2f %% (search.stop_below); the cuts end before it",
                    self._network,
                    stage,
                    lowest,
                )
                left = left or trained
                network = load_student(context.workload, left.subnetwork, left.slim)
                return self._write(context, network, left.subnetwork, made, forms[0])
            left, standing = trained, trained.standing
        cut = best_cut(context, self.name, forms, budget, standing)
        network = slim(standing.graph(context), cut.subnetwork)
        return self._write(context, network, cut.subnetwork, made, cut.section)

    def _write(
        self,
        context: RunContext,
        network: nn.Module,
        subnetwork: Subnetwork,
        made: Sequence[Stage],
        section: OneShotSection,
    ) -> Result:
        epochs_left = context.setup.job.finetune.epochs - sum(stage.epochs for stage in made)
        fields = {"groups": section.groups, "stages": [asdict(stage) for stage in made], "epochs_left": epochs_left}
        found = write_found(context, self.name, network, subnetwork, fields)
        names = [self._training(stage.stage) for stage in made]
        records = [outcome_path(context.training_folder, name).relative_to(context.folder).as_posix() for name in names]
        return replace(found, extras=records)

    def _train(
        self, context: RunContext, stage: int, subnetwork: Subnetwork, standing: Standing
    ) -> tuple[_Left, float]:
        """Train the network of a stage; what it leaves, and its accuracy in percent."""
        name, folder, graph = self._training(stage), context.training_folder, standing.graph(context)
        context.teams.release()
        make_folder(folder)
        initial, wide = (folder / f"{name}.{part}.safetensors" for part in ("initial", "wide"))
        save_tensors(initial, slim(graph, subnetwork).state_dict(), {"network": name})
        task = TrainingTask(
            name=name,
            config=finetune_config(context, self._objective, self._epochs(context)),
            subnetwork=subnetwork,
            ids=context.setup.train_id_list,
            evaluate=True,
            initial=initial,
        )
        train_by_backend(context, self.name, task)
        outcome = Outcome.read(folder, name)
        weights = widen(graph, subnetwork, load_tensors(outcome.weights)[0], context.setup.recipe.input_shape)
        save_tensors(wide, weights, {"network": name})
        return _Left(subnetwork, outcome.weights, Standing(subnetwork, wide)), outcome.result.last()

    def _stage(
        self, context: RunContext, budget: Budget, stage: int, subnetwork: Subnetwork, top1: float, *, held: bool
    ) -> Stage:
        costs = cost(context.setup.graph, subnetwork, budget.counter)
        return Stage(
            stage=stage,
            subnetwork=subnetwork.sha256,
            macs=costs.macs,
            params=costs.params,
            epochs=self._epochs(context),
            top1=top1,
            held=held,
        )

    def _training(self, stage: int) -> str:
        return f"{self._network}-stage-{stage}"

    def _epochs(self, context: RunContext) -> int:
        """Epochs of every stage but the last, which has those that are left."""
        return context.setup.job.finetune.epochs // self._num_stages

    def _budget(self, context: RunContext) -> Budget:
        return baseline_budget(context) if self._is_baseline else context.setup.budget

    def _share(self, context: RunContext, budget: Budget, stages: int) -> Budget:
        """What so many stages cut to."""
        full = budget.measured(context.setup.full_costs.macs, context.setup.full_costs.params)
        return replace(budget, limit=full - (full - budget.limit) * stages / self._num_stages)

    def _lowest(self, context: RunContext) -> float:
        """Accuracy that a stage must reach, percent."""
        drop, setup = self._forms[0].stop_below, context.setup
        if drop is None:
            return -math.inf
        EXACT.set_backends()
        network, device = setup.workload(context.weights("pretrain")).open_network(), torch.device(setup.device)
        devices = setup.num_local_devices
        with (
            context.charged(PhaseKind.SEARCH, self.name, device_name(device), devices) as clock,
            clock.working(devices),
        ):
            found = evaluate(network, setup.test, context.workload.normalisation, World(device), check=context.check)
        return found.top1 - drop

    def _check_share(self, context: RunContext, budget: Budget) -> None:
        """Refuse stages of which one might cut nothing: where a stage takes more than any channel, none does.

        Raises:
            BudgetError: a channel costs more than a stage takes.
        """
        graph = context.setup.graph
        full = cost(graph, graph.full(), budget.counter)
        before = budget.measured(full.macs, full.params)
        share, largest, name = (before - budget.limit) / self._num_stages, 0, ""
        for group in chosen_groups(graph, self._forms[0]):
            if group.size > 1:
                fewer = cost(graph, graph.full().replace(group.name, range(group.size - 1)), budget.counter)
                saved = before - budget.measured(fewer.macs, fewer.params)
                if saved > largest:
                    largest, name = saved, group.name
        if share < largest:
            raise BudgetError(
                f"{self._network}: each of {self._num_stages} stages would cut {share:,.0f} {budget.unit}, but one "
                f"channel of {name} alone has {largest:,}, so a stage could cut nothing; use at most "
                f"{int((before - budget.limit) // largest)} stages, or cut at once (stages: null)"
            )
