"""One search worker on Ray: the process, and what the driver knows of it."""

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ekgsearch.bank.commit import MissingBlock
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.orchestration.pieces import Pieces, pack
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.progress import configure_logging
from ekgsearch.workers.questions import Answer, Question
from ekgsearch.workers.worker import BuiltBlock, SearchSpec, Timed, Worker
from ekgsearch.workers.workload import Workload


@ray.remote
class SearchWorker:
    """A worker in a process of its own; it opens network and images when it is first asked."""

    def __init__(self, workload: Workload, spec: SearchSpec, owned: tuple[int, ...], attempt: int) -> None:
        configure_logging(None)  # the log of a local session lets only errors pass
        logging.getLogger("ekgsearch").setLevel(logging.WARNING)
        self._order = (workload, spec, owned, attempt)

    def open(self, interim: Sequence[Subnetwork]) -> Timed[tuple[str, int]]:
        """Open network and images, average these networks, and say on which host and in which process."""
        start = time.perf_counter()
        self._worker = Worker(*self._order)
        self._worker.begin(interim)
        return Timed((socket.gethostname(), os.getpid()), time.perf_counter() - start)

    def answer(self, question: Question) -> Answer | Pieces:
        """Answer a question of the search."""
        return pack(self._worker.answer(question))

    def build_block(
        self, spec: BankSpec, teachers: Sequence[Subnetwork], missing: MissingBlock, uri: str
    ) -> Timed[BuiltBlock]:
        """Build what is missing of one block of the memory bank."""
        return self._worker.build_block(spec, teachers, missing, uri)


@dataclass(slots=True, eq=False)
class Member:
    """One worker of the crew.

    Attributes:
        index: its place, from 0.
        owned: its batches; none where it only builds the memory bank.
        attempt: which process this is that owns them, from 1.
        actor: the process.
        opening: reference of the call that opens it; None once it is open.
        deadline: when it is given up if the call that it works on has no answer, by the monotonic clock.
        host, process: where it runs, once it is open.
        losses: processes lost since the last answer.
    """

    index: int
    owned: tuple[int, ...]
    attempt: int = 0
    actor: Any = None
    opening: Any = None
    deadline: float = 0.0
    host: str = ""
    process: int = 0
    losses: int = 0
