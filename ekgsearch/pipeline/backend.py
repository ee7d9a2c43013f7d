"""Where the heavy phases run: the protocol, and the implementation that needs nothing but this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ekgsearch.bank.manifest import BankSpec
from ekgsearch.pipeline.training import TrainingPlan, run_plan
from ekgsearch.pipeline.worker import SearchPlan, Worker
from ekgsearch.pipeline.workload import Workload
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.ledger import Clock
from ekgsearch.search.base import Candidate, Evaluation, Evaluator, GroupScores, mean_over_batches, sum_over_batches
from ekgsearch.search.evaluate import evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOrder:
    """A memory bank to be built.

    Attributes:
        spec: what it is made of.
        teachers: the sub-networks, the one of the lowest loss first.
        blocks: blocks that are still missing.
        uri: where it is stored.
    """

    spec: BankSpec
    teachers: tuple[Subnetwork, ...]
    blocks: tuple[int, ...]
    uri: str


class Team(Evaluator, Protocol):
    """The workers of one run: they evaluate candidates and build the memory bank."""

    def build_bank(self, order: BankOrder, on_block: Callable[[int], None]) -> None:
        """Build all blocks; `on_block` is told the images of each as it is stored."""
        ...

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        ...


class Backend(Protocol):
    """Runs the heavy phases of a run."""

    @property
    def num_search_devices(self) -> int:
        """Devices (CPU: cores) that the workers of search and bank hold."""
        ...

    def team(self, workload: Workload, plan: SearchPlan) -> AbstractContextManager[Team]:
        """Start the workers; they stop at the end of the context."""
        ...

    def train(self, plan: TrainingPlan, *, folder: Path, workers: int, clock: Clock) -> None:
        """Train the networks of a plan; their outcomes are written under `folder`. Resumes what a kill left."""
        ...


class InProcessTeam:
    """One worker in this process that owns all batches."""

    def __init__(self, worker: Worker, nominal_batch: int | None) -> None:
        self._worker = worker
        self._nominal_batch = nominal_batch
        self._clock: Clock | None = None

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._clock = clock

    def begin(self, history: Sequence[Subnetwork]) -> Evaluation:
        """Set the ensemble knowledge; return the evaluation of the last network."""
        answer = self._worker.begin(history)
        self._busy(answer.busy_seconds)
        return mean_over_batches(answer.value, self._nominal_batch)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Importance of every channel."""
        answer = self._worker.scores(current, count)
        self._busy(answer.busy_seconds)
        return sum_over_batches(answer.value)

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates in their order."""
        answer = self._worker.evaluate(current, candidates)
        self._busy(answer.busy_seconds)
        return evaluations(answer.value, len(candidates), self._nominal_batch)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates that nearly tie by the masked network."""
        answer = self._worker.settle(candidates)
        self._busy(answer.busy_seconds)
        return evaluations(answer.value, len(candidates), self._nominal_batch)

    def build_bank(self, order: BankOrder, on_block: Callable[[int], None]) -> None:
        """Build all blocks, one after the other."""
        for block in order.blocks:
            answer = self._worker.build_block(order.spec, order.teachers, block, order.uri)
            self._busy(answer.busy_seconds)
            on_block(answer.value)

    def _busy(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.busy(seconds)


class InProcessBackend:
    """Everything in this process, without Ray."""

    num_search_devices = 1

    @contextmanager
    def team(self, workload: Workload, plan: SearchPlan) -> Iterator[Team]:
        """Open the one worker; the number of torch threads is restored afterwards."""
        threads = torch.get_num_threads()
        try:
            worker = Worker(workload, plan, [index for index, _ in plan.batches])
            yield InProcessTeam(worker, plan.nominal_batch)
        finally:
            torch.set_num_threads(threads)

    def train(self, plan: TrainingPlan, *, folder: Path, workers: int, clock: Clock) -> None:
        """Train the networks of a plan one after the other in this process."""
        with clock.working():
            run_plan(plan, folder)
