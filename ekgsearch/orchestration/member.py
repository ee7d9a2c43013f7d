"""One search worker on Ray: the process, and what the driver knows of it."""

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray

from ekgsearch.bank.commit import MissingBlock
from ekgsearch.orchestration.pieces import Pieces, pack
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.progress import configure_logging
from ekgsearch.workers.questions import Answer, Question
from ekgsearch.workers.spec import BuiltBlock, SearchSpec, Timed
from ekgsearch.workers.team import BankOrder
from ekgsearch.workers.worker import Worker
from ekgsearch.workers.workload import Workload


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs.

    Attributes:
        host: name of the machine.
        process: its number there.
    """

    host: str
    process: int


Reply: TypeAlias = Timed[Place] | Answer | Timed[BuiltBlock]
"""What the calls of a worker return: `open`, `answer`, `build_block`."""

Reference: TypeAlias = ray.ObjectRef[Reply | Pieces]
"""A reply on its way, a large answer in pieces."""


@ray.remote
class SearchWorker:
    """A worker in a process of its own; it opens network and images when it is first asked."""

    def __init__(self, workload: Workload, spec: SearchSpec, owned: tuple[int, ...], attempt: int) -> None:
        configure_logging(None)  # the log of a local session lets only errors pass
        logging.getLogger("ekgsearch").setLevel(logging.WARNING)
        self._order = (workload, spec, owned, attempt)

    def open(self, interim: Sequence[Subnetwork]) -> Timed[Place]:
        """Open network and images, average these networks, and say where this is."""
        start = time.perf_counter()
        self._worker = Worker(*self._order)
        self._worker.begin(interim)
        return Timed(Place(socket.gethostname(), os.getpid()), time.perf_counter() - start)

    def answer(self, question: Question) -> Answer | Pieces:
        """Answer a question of the search."""
        return pack(self._worker.answer(question))

    def build_block(self, order: BankOrder, missing: MissingBlock) -> Timed[BuiltBlock]:
        """Build what is missing of one block of the memory bank."""
        return self._worker.build_block(order.spec, order.teachers, missing, order.uri)


@dataclass(slots=True, eq=False)
class Member:
    """One worker of the crew.

    Attributes:
        index: its place, from 0.
        owned: its batches; none where it only builds the memory bank.
        attempt: which process this is that owns them, from 1.
        actor: handle of the process, which Ray leaves without a type.
        opening: reference of the call that opens it; None once it is open.
        deadline: when it is given up if the call that it works on has no answer, by the monotonic clock.
        host, process: where it runs, once it is open.
        losses: processes lost since the last answer.
    """

    index: int
    owned: tuple[int, ...]
    attempt: int = 0
    actor: Any = None
    opening: Reference | None = None
    deadline: float = 0.0
    host: str = ""
    process: int = 0
    losses: int = 0

    def open(self, interim: Sequence[Subnetwork]) -> None:
        """Let the process open network and images and average these networks."""
        self.opening = self.actor.open.remote(tuple(interim))

    def answer(self, question: Question) -> Reference:
        """Put a question to the process."""
        reference: Reference = self.actor.answer.remote(question)
        return reference

    def build_block(self, order: BankOrder, missing: MissingBlock) -> Reference:
        """Let the process build one block of the memory bank."""
        reference: Reference = self.actor.build_block.remote(order, missing)
        return reference
