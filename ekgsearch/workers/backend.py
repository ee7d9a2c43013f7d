"""Backends of the heavy phases: the protocol, and the implementation that needs this process alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from ekgsearch.records import Subnetwork
from ekgsearch.runtime.environment import torch_threads
from ekgsearch.runtime.ledger import Clock
from ekgsearch.runtime.listener import SILENT, Listener, stop_where_asked
from ekgsearch.storage.files import make_folder
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Question
from ekgsearch.workers.spec import BuiltBlock, SearchSpec
from ekgsearch.workers.team import BankOrder, Team
from ekgsearch.workers.training import TrainingSpec, train_all
from ekgsearch.workers.worker import Worker
from ekgsearch.workers.workload import Workload


class Backend(Protocol):
    """Runs the heavy phases of a run."""

    @property
    def cluster_has_gpus(self) -> bool | None:
        """Whether a node of the cluster that was named has a GPU; None where no cluster was named."""
        ...

    @property
    def num_search_devices(self) -> int:
        """Devices (CPU: cores) that the workers of search and bank hold, while there is a team."""
        ...

    def enlist(self, num_blocks: int) -> None:
        """Let further workers join the team, as many as the job asks for and so many blocks of the bank can feed."""
        ...

    def team(
        self, workload: Workload, spec: SearchSpec, *, listener: Listener = SILENT
    ) -> AbstractContextManager[Team]:
        """Start the workers; they stop at the end of the context, and their work where the listener asks for it."""
        ...

    def train(
        self, spec: TrainingSpec, *, folder: Path, workers: int, clock: Clock, listener: Listener = SILENT
    ) -> None:
        """Train the networks of a spec; their outcomes are written under `folder`. Resumes what a kill left.

        Raises:
            Stopped: the listener has asked for it.
        """
        ...


class InProcessCrew:
    """One worker in this process that owns all batches."""

    def __init__(self, worker: Worker, num_devices: int) -> None:
        self._worker = worker
        self._num_devices = num_devices
        self._clock: Clock | None = None

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._clock = clock

    def ask(self, question: Question, inbox: Inbox, interim: Sequence[Subnetwork]) -> None:
        """Answer a question here; the one worker needs no interim sub-networks, since it never gets lost."""
        answer = self._worker.answer(question)
        self._busy(answer.busy_seconds)
        for key, value in answer.reports():
            inbox.take(key, value)

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        """Build all blocks, one after the other."""
        for missing in order.missing:
            answer = self._worker.build_block(order.spec, order.teachers, missing, order.uri)
            self._busy(answer.busy_seconds)
            on_block(answer.value)

    def _busy(self, seconds: float) -> None:
        if self._clock is not None:
            self._clock.busy(seconds * self._num_devices)


class InProcessBackend:
    """Everything in this process, without Ray."""

    def __init__(self) -> None:
        self._num_devices = 1

    @property
    def cluster_has_gpus(self) -> None:
        """None: there is no cluster."""

    @property
    def num_search_devices(self) -> int:
        """Devices (CPU: cores) that search and bank hold, while there is a team."""
        return self._num_devices

    def enlist(self, num_blocks: int) -> None:
        """Nobody joins: the one worker builds all blocks."""

    @contextmanager
    def team(self, workload: Workload, spec: SearchSpec, *, listener: Listener = SILENT) -> Iterator[Team]:
        """Open the one worker; the number of torch threads is restored afterwards."""
        with torch_threads(workload.threads):
            owned = [index for index, _ in spec.batches]
            worker = Worker(workload, spec, owned, check=partial(stop_where_asked, listener))
            self._num_devices = workload.devices_per_worker
            yield Team(InProcessCrew(worker, self._num_devices), spec)

    def train(
        self, spec: TrainingSpec, *, folder: Path, workers: int, clock: Clock, listener: Listener = SILENT
    ) -> None:
        """Train the networks of a spec one after the other in this process."""
        make_folder(folder)
        with clock.working(spec.devices_per_worker), torch_threads(spec.threads):
            train_all(spec, folder, listener=listener)
