"""Accuracy of what one-shot baselines leave of a network, next to the sub-network that a search has found.

Every method cuts the same weights to the same share of the operations, over private channel groups alone and over all
of them, and nothing is trained: running statistics are averaged again over the same training images, then the whole
test set counts, or training images that were kept aside, on which to choose. Taylor and EKG look at the search subset
of the job, the others at no image. Seconds are wall time from the opened network to the sub-network; one search of EKG
serves all shares, and its seconds are those to each of them.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError

from ekgsearch.bench.base import BenchSettings, Measurement, job_in_small
from ekgsearch.bench.search import journaled
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.channels.slim import slim
from ekgsearch.errors import JobError
from ekgsearch.fields import Count, Mark, Share, Text, expand_path
from ekgsearch.finetune.average import RECALIBRATION_IMAGES, recalibrate_on
from ekgsearch.finetune.config import TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.world import World
from ekgsearch.jobfile import load_job
from ekgsearch.methods.base import BatchwiseEvaluator, Materials
from ekgsearch.methods.baselines.section import BASELINES, SCORED_EVERY, BaselineName
from ekgsearch.methods.budget import Budget, set_budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.methods.ekg.section import EkgSection
from ekgsearch.methods.rules import Rules
from ekgsearch.methods.section import EvaluatingSection, SearchSection
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.workload import Workload

log = logging.getLogger(__name__)

IN_SMALL = 1.5 * SCORED_EVERY
"""Share of the operations that is removed in a smoke run."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["rivals"]
    job: Annotated[Text, Mark.PATH] = Field(description="job that names the network, its weights and the images")
    overrides: tuple[str, ...] = Field((), description="fields of the job to replace, path=value")
    weights: Annotated[Text | None, Mark.PATH] = Field(
        None, description="weights that are cut in place of the job's, e.g. of a run"
    )
    journal: Annotated[Text | None, Mark.PATH] = Field(
        None, description="journal of a run of the job, whose sub-networks are measured, too; null leaves it out"
    )
    methods: tuple[BaselineName, ...] = Field(tuple(BASELINES), min_length=1, description="baselines that are measured")
    groups: tuple[Literal["private", "all"], ...] = Field(
        ("private", "all"), min_length=1, description="which channel groups they may cut"
    )
    searches: dict[Text, dict[Text, Any]] = Field(
        default_factory=dict,
        description="searches of EKG that are made: a name, and the fields of the job's search that it changes",
    )
    aside: Count = Field(
        0,
        description="measure on so many training images of each class, the last that the search does not look at, "
        "instead of the test set; 0: the test set",
    )
    reductions: tuple[Share, ...] = Field(
        (0.45, 0.55), min_length=1, description="shares of the operations that are removed, 0..1"
    )

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Two steps of every cut, over private channel groups, on the images of the job's smoke form."""
        changes, notes = job_in_small(self.job, self.overrides)
        small = {
            "weights": None,
            "journal": None,
            "groups": self.groups[:1],
            "searches": dict(list(self.searches.items())[:1]),
            "reductions": (IN_SMALL,),
        }
        return changes | small, notes


def run(settings: Settings) -> Iterator[Measurement]:
    """Cut by every method, and measure what is left.

    Raises:
        JobError, DataError, NetworkError, BudgetError, StorageError: something is missing, damaged or out of reach.
    """
    setup = set_up(load_job(Path(settings.job), settings.overrides))
    EXACT.set_backends()
    with tempfile.TemporaryDirectory(prefix="ekgsearch-bench-") as folder, ExitStack() as work:
        if settings.aside:
            setup = _kept_aside(setup, settings.aside)
        rivals = _Rivals(setup, _workload(settings, setup, Path(folder)), work)
        for name, changes in settings.searches.items():
            yield from rivals.searched(name, _changed(setup.job.search, changes, name), settings.reductions)
        for reduction in settings.reductions:
            if settings.journal is not None:
                yield from rivals.journaled(expand_path(settings.journal, "journal"), reduction)
            for groups in settings.groups:
                for method in settings.methods:
                    yield from rivals.cut(method, groups, reduction)


def _workload(settings: Settings, setup: Setup, folder: Path) -> Workload:
    """The network with the weights that are cut; those of a network without any are the random ones of the job."""
    weights = settings.weights or setup.job.net.weights
    if weights is not None:
        return setup.workload(expand_path(weights, "weights"))
    drawn = folder / "weights.safetensors"
    save_tensors(drawn, setup.network.state_dict(), {})
    return setup.workload(drawn)


def _kept_aside(setup: Setup, per_class: int) -> Setup:
    """The job with the last training images of each class, but for those of the search, in place of the test set."""
    train = setup.dataset.train
    searched = torch.isin(torch.arange(len(train)), setup.search_ids)
    aside = torch.cat(
        [
            torch.nonzero((train.labels == label) & ~searched).flatten()[-per_class:]
            for label in range(setup.dataset.num_classes)
        ]
    )
    used = torch.arange(len(train)) if setup.train_ids is None else setup.train_ids
    return replace(setup, test=train.take(aside), train_ids=used[~torch.isin(used, aside)])


def _changed(section: SearchSection, changes: Mapping[str, Any], name: str) -> EkgSection:
    """The section of a search with some of its fields replaced."""
    if not isinstance(section, EkgSection):
        raise JobError(f"searches are those of search.method ekg; the job's is {section.method}")
    given = section.model_dump(include=section.model_fields_set)
    try:
        return EkgSection.model_validate(given | dict(changes) | {"budget": None})
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"searches.{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


class _Rivals:
    """Sub-networks of one network, and what they are worth.

    Args:
        setup: the opened job.
        workload: the network with the weights that are cut.
        work: closes the workers that evaluate networks.
    """

    def __init__(self, setup: Setup, workload: Workload, work: ExitStack) -> None:
        self._setup = setup
        self._workload = workload
        self._work = work
        self._graph = self._open_graph()
        self._teams: dict[Rules, BatchwiseEvaluator] = {}

    def cut(self, method: BaselineName, groups: Literal["private", "all"], reduction: float) -> Iterator[Measurement]:
        """Cut by one method, and measure."""
        counter = self._setup.job.search.counter
        section = BASELINES[method](method=method, groups=groups, reduction=reduction, counter=counter)
        search = section.open(self._materials(section, reduction))
        start = time.perf_counter()
        *_, last = search.run()
        seconds = time.perf_counter() - start
        case = f"{method}, {groups}, {100 * reduction:g} %"
        yield from self._measured(case, last.subnetwork, last.macs)
        yield Measurement.count(case, "search", "s", seconds)

    def searched(self, name: str, section: EkgSection, reductions: Sequence[float]) -> Iterator[Measurement]:
        """Search by EKG as far as the largest share, and measure where each of them is met first."""
        section = section.model_copy(update={"reduction": max(reductions)})
        left, candidates = sorted(reductions), 0
        start = time.perf_counter()
        for decision in section.open(self._materials(section, max(reductions))).run():
            candidates += len(decision.candidates)
            while left and self._budget(left[0]).is_met(decision.macs, decision.params):
                case = f"ekg {name}, {section.groups}, {100 * left.pop(0):g} %"
                yield Measurement.count(case, "search", "s", time.perf_counter() - start)
                stopped = time.perf_counter()
                yield from self._measured(case, decision.subnetwork, decision.macs)
                yield Measurement.count(case, "iterations", "", decision.iteration)
                yield Measurement.count(case, "candidates", "", candidates)
                start += time.perf_counter() - stopped

    def journaled(self, path: Path, reduction: float) -> Iterator[Measurement]:
        """Measure the first sub-network in a journal that a search to this reduction would have ended with."""
        budget = self._budget(reduction)
        for decision in journaled(self._setup, path):
            if budget.is_met(decision.macs, decision.params):
                case = f"{self._setup.job.search.method}, journal, {100 * reduction:g} %"
                yield from self._measured(case, decision.subnetwork, decision.macs)
                return
        log.warning("journal = %s: the search ended before %.0f %% were removed; left out", path, 100 * reduction)

    def _measured(self, case: str, subnetwork: Subnetwork, macs: int) -> Iterator[Measurement]:
        setup, normalisation = self._setup, self._workload.normalisation
        network = slim(self._open_graph(), subnetwork)
        data = TrainData(
            setup.dataset.train, normalisation, ids=setup.train_ids, max_damaged=setup.data.loading.max_damaged
        )
        recalibrate_on(network, data, images=RECALIBRATION_IMAGES, seed=setup.job.seed)
        found = evaluate(network, setup.test, normalisation, World(torch.device(setup.device)))
        yield Measurement.count(case, "top-1, recalibrated", "%", found.top1)
        yield Measurement.count(case, "MACs removed", "%", 100 * (1 - macs / setup.full_costs.macs))

    def _open_graph(self) -> ChannelGraph:
        return analyse(self._workload.open_network(), self._setup.recipe.input_shape)

    def _budget(self, reduction: float, groups: Sequence[ChannelGroup] | None = None) -> Budget:
        return set_budget(
            self._graph,
            reduction=reduction,
            absolute=None,
            unit="macs",
            counter=self._setup.job.search.counter,
            groups=groups,
        )

    def _materials(self, section: SearchSection, reduction: float) -> Materials:
        job, chosen = self._setup.job, chosen_groups(self._graph, section)
        spec = self._setup_of(section).search_spec if isinstance(section, EvaluatingSection) else None
        return Materials(
            graph=self._graph,
            groups=chosen,
            open_graph=lambda: self._graph,
            budget=self._budget(reduction, chosen),
            seed=sub_seed(job.seed, "criterion"),
            threads=job.cluster.threads,
            evaluator=self._evaluator(section),
            batches=[] if spec is None else [index for index, _ in spec.batches],
            tie_tolerance=0.0 if spec is None else spec.tie_tolerance,
        )

    def _evaluator(self, section: SearchSection) -> Callable[[], BatchwiseEvaluator]:
        """Workers that hold the search subset, the same for every search by the same rules."""
        if not isinstance(section, EvaluatingSection):
            return _nobody
        spec = self._setup_of(section).search_spec
        if spec.rules not in self._teams:
            self._teams[spec.rules] = self._work.enter_context(InProcessBackend().team(self._workload, spec))
        team = self._teams[spec.rules]
        return lambda: team

    def _setup_of(self, section: SearchSection) -> Setup:
        return replace(self._setup, job=self._setup.job.model_copy(update={"search": section}))


def _nobody() -> BatchwiseEvaluator:
    raise AssertionError("the method looks at no image")
