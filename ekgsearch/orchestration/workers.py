"""Long-lived Ray workers that own fixed batches, replaced when they are lost."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ekgsearch.errors import EkgError, WorkerError
from ekgsearch.experiment import ClusterSection
from ekgsearch.orchestration.placement import Request, no_room, nodes_of_cluster, spread
from ekgsearch.orchestration.session import cluster_address
from ekgsearch.orchestration.traffic import Traffic
from ekgsearch.pipeline.reports import Answer, Inbox, Question
from ekgsearch.pipeline.team import BankOrder
from ekgsearch.pipeline.worker import SearchPlan, Timed, Worker
from ekgsearch.pipeline.workload import Workload
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.ledger import Clock

log = logging.getLogger(__name__)


@ray.remote
class SearchWorker:
    """A worker in a process of its own; it opens network and images when it is first asked."""

    def __init__(self, workload: Workload, plan: SearchPlan, owned: tuple[int, ...], attempt: int) -> None:
        self._order = (workload, plan, owned, attempt)

    def open(self, history: Sequence[Subnetwork]) -> Timed[tuple[str, int]]:
        """Open network and images, average these networks, and say on which host and in which process."""
        start = time.perf_counter()
        self._worker = Worker(*self._order)
        self._worker.begin(history)
        return Timed((socket.gethostname(), os.getpid()), time.perf_counter() - start)

    def answer(self, question: Question) -> Answer:
        """Answer a question of the search."""
        return self._worker.answer(question)

    def build_block(self, order: BankOrder, block: int) -> Timed[int]:
        """Build one block of the memory bank; returns its images."""
        return self._worker.build_block(order.spec, order.teachers, block, order.uri)


@dataclass(slots=True)
class Member:
    """One worker of the crew.

    Attributes:
        index: its place, from 0.
        owned: its batches.
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


class RayCrew:
    """Workers on Ray, each of which owns whole batches for the length of the run.

    A worker that dies or does not answer in time is replaced by a new one, which recomputes the ensemble knowledge of
    its batches from the interim sub-networks and is asked the same again. What its predecessor says after that is
    dropped (`Inbox`). All workers of a question work at the same time, and all are watched at the same time.
    """

    def __init__(self, workload: Workload, plan: SearchPlan, cluster: ClusterSection) -> None:
        self._workload = workload
        self._plan = plan
        self._cluster = cluster
        self._request = Request.of(cluster, workload.device)
        self._clock: Clock | None = None
        self._given_up: list[Any] = []
        self.traffic = Traffic()
        sizes = [len(ids) for _, ids in plan.batches]
        shares = spread(sizes, cluster.search_workers)
        if len(shares) < cluster.search_workers:
            log.warning(
                "cluster.search_workers = %d, but the search subset has %d batches of at most %d images, and a batch "
                "is never split: using %d workers",
                cluster.search_workers,
                len(sizes),
                max(sizes),
                len(shares),
            )
        shortage = no_room(self._request, len(shares), nodes_of_cluster())
        if shortage:
            if cluster_address(cluster) is None:
                raise WorkerError(shortage)
            log.warning("%s; waiting %g s for nodes", shortage, cluster.start_timeout_seconds)
        self.members = [Member(index, owned) for index, owned in enumerate(shares)]
        for member in self.members:
            self._start(member, ())

    @property
    def num_devices(self) -> int:
        """GPUs (CPU: cores) that the workers hold, rounded up."""
        return -int(-len(self.members) * self._request.devices // 1)

    def stop(self) -> None:
        """End all workers."""
        for member in self.members:
            ray.kill(member.actor)
        log.info(
            "search workers: at most %d calls per worker and iteration, largest object %.1f kB",
            self.traffic.most_calls,
            self.traffic.largest_bytes / 1000,
        )

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._clock = clock

    def ask(self, question: Question, inbox: Inbox, history: Sequence[Subnetwork]) -> None:
        """Put a question to all workers; those that are lost are replaced and asked again."""
        self._drop_late(inbox)
        self.traffic.weigh(question)
        calls: dict[Any, Member] = {}

        def send(member: Member) -> None:
            inbox.expect(member.owned, member.attempt)
            self.traffic.call(member.index, question.iteration)
            calls[self._call(member, "answer", question)] = member

        for member in self.members:
            send(member)
        while calls:
            for member, answer in self._next(calls, history):
                if answer is None:
                    send(member)
                else:
                    self.traffic.weigh(answer)
                    for key, value in answer.reports():
                        inbox.take(key, value)

    def build_bank(self, order: BankOrder, on_block: Callable[[int], None]) -> None:
        """Build all blocks; every worker takes the next one as it becomes free."""
        waiting = list(order.blocks)
        blocks: dict[int, int] = {}
        calls: dict[Any, Member] = {}
        idle = list(self.members)
        while waiting or calls:
            while waiting and idle:
                member = idle.pop()
                blocks[member.index] = waiting.pop(0)
                calls[self._call(member, "build_block", order, blocks[member.index])] = member
            for member, answer in self._next(calls, ()):
                idle.append(member)
                if answer is None:
                    waiting.insert(0, blocks[member.index])
                else:
                    on_block(answer.value)

    def _call(self, member: Member, method: str, *arguments: Any) -> Any:
        """Call a method of a worker, or wait for its opening first; returns the reference to wait for."""
        if member.opening is not None:
            return member.opening
        member.deadline = time.monotonic() + self._cluster.timeout_seconds
        return getattr(member.actor, method).remote(*arguments)

    def _next(self, calls: dict[Any, Member], history: Sequence[Subnetwork]) -> Iterator[tuple[Member, Any]]:
        """Wait until something happens; yield workers with their answers, None where the call must be repeated."""
        patience = min(member.deadline for member in calls.values()) - time.monotonic()
        done, _ = ray.wait(list(calls), num_returns=1, timeout=max(patience, 0))
        now = time.monotonic()
        late = [] if done else [reference for reference, member in calls.items() if member.deadline <= now]
        for reference in [*done, *late]:
            member = calls.pop(reference)
            try:
                if reference in late:
                    self._given_up.append(reference)
                    raise TimeoutError(f"no answer from process {member.process or '(not started)'} {member.host}")
                answer = ray.get(reference)
            except (RayActorError, TimeoutError) as error:
                self._replace(member, error, history)
                yield member, None
                continue
            except RayTaskError as error:
                raise _own_error(error, member.index) from error
            if self._clock is not None:
                self._clock.busy(answer.busy_seconds)
            if member.opening is not None:
                member.opening, (member.host, member.process) = None, answer.value
                yield member, None
            else:
                member.losses = 0
                yield member, answer

    def _drop_late(self, inbox: Inbox) -> None:
        """Let the inbox see what replaced workers have said since; it drops and counts it."""
        if not self._given_up:
            return
        done, self._given_up = ray.wait(self._given_up, num_returns=len(self._given_up), timeout=0)
        for reference in done:
            try:
                answer = ray.get(reference)
            except RayError:
                continue  # it has died, as it should
            if isinstance(answer, Answer):
                for key, value in answer.reports():
                    inbox.take(key, value)

    def _replace(self, member: Member, error: Exception, history: Sequence[Subnetwork]) -> None:
        """Start another worker in place of a lost one, as often as the job allows."""
        is_starting = member.opening is not None
        what = ("did not start" if is_starting else "did not answer") if isinstance(error, TimeoutError) else "died"
        shortage = no_room(self._request, len(self.members), nodes_of_cluster()) if what == "did not start" else None
        if shortage:
            raise WorkerError(
                f"search worker {member.index} found no place in cluster.start_timeout_seconds = "
                f"{self._cluster.start_timeout_seconds:g}: {shortage}. What is committed is kept: then run the same "
                "command again"
            ) from error
        member.losses += 1
        if member.losses > self._cluster.max_restarts:
            raise WorkerError(
                f"search worker {member.index} {what}, the {member.losses}. time in a row; cluster.max_restarts is "
                f"{self._cluster.max_restarts}. What is committed is kept: look for lack of memory on its node, or for "
                f"cores that another job holds (free now: {_free()}), then run the same command again. "
                f"Last words: {' '.join(str(error).split())[:300]}"
            ) from error
        log.warning("search worker %d %s; starting another one (%d)", member.index, what, member.losses)
        ray.kill(member.actor)
        self._start(member, history)

    def _start(self, member: Member, history: Sequence[Subnetwork]) -> None:
        """Start a process for a worker and let it open network and images."""
        member.attempt += 1
        member.host, member.process = "", 0
        options = {
            "num_cpus": self._request.cpus,
            "num_gpus": self._request.gpus,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD" if self._cluster.placement == "spread" else "DEFAULT",
        }
        arguments = (self._workload, self._plan, member.owned, member.attempt)
        self.traffic.weigh(arguments)
        self.traffic.weigh(history)
        member.actor = SearchWorker.options(**options).remote(*arguments)  # type: ignore[attr-defined]
        member.opening = member.actor.open.remote(tuple(history))
        member.deadline = time.monotonic() + self._cluster.start_timeout_seconds


def _free() -> str:
    found = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{found.get('CPU', 0):g} CPU, {found.get('GPU', 0):g} GPU"


def _own_error(error: RayTaskError, worker: int) -> EkgError:
    """The error that a worker raised on purpose, or a short account of one that it did not."""
    cause = error.cause
    if isinstance(cause, EkgError):
        return cause
    return WorkerError(f"search worker {worker} failed: {type(cause).__name__}: {cause}")
