"""Long-lived Ray workers that own fixed batches, replaced when they are lost."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ekgsearch.bank.commit import MissingBlock
from ekgsearch.errors import OUT_OF_MEMORY, EkgError, WorkerError, is_out_of_memory
from ekgsearch.orchestration.member import Member, Place, Reference, Reply, SearchWorker
from ekgsearch.orchestration.pieces import unpack
from ekgsearch.orchestration.placement import Request, no_room, nodes_of_cluster, reserve, spread
from ekgsearch.orchestration.traffic import Traffic
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.ledger import Clock
from ekgsearch.runtime.listener import SILENT, Listener, stop_where_asked
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Answer, Question
from ekgsearch.workers.spec import BuiltBlock, SearchSpec, Timed
from ekgsearch.workers.team import BankOrder
from ekgsearch.workers.workload import Workload

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.5
"""Longest wait for workers before the listener is asked again whether to stop."""


class RayCrew:
    """Workers on Ray, each of which owns whole batches for the length of the run.

    Workers beyond the batches join for the memory bank (`enlist`); they own no batch and are asked nothing else. Of a
    spec without batches one such worker is there from the start.

    A worker that dies or does not answer in time is replaced by a new one, which recomputes the ensemble knowledge of
    its batches from the interim sub-networks and is asked the same again. What its predecessor says after that is
    dropped (`Inbox`). All workers of a question work at the same time, and all are watched at the same time.

    Where the listener asks for a stop, the wait for the workers ends by raising `Stopped`; `stop` then ends them.
    """

    _group: PlacementGroup | None = None

    def __init__(
        self,
        workload: Workload,
        spec: SearchSpec,
        cluster: ClusterSection,
        listener: Listener = SILENT,
        *,
        together: bool = False,
    ) -> None:
        """Start the workers.

        Args:
            workload: the network.
            spec: what they work on.
            cluster: how many, where, and what each asks for.
            listener: asked whether to stop.
            together: take the places of all workers at once, and none later: of two runs that take them one by one,
                each can hold what the other waits for.

        Raises:
            Stopped: the listener has asked for it while places were waited for.
            WorkerError: this machine has no room for them.
        """
        self._workload = workload
        self._spec = spec
        self._cluster = cluster
        self._listener = listener
        self._request = Request.of(cluster, workload.device)
        self._clock: Clock | None = None
        self._given_up: list[Reference] = []
        self.traffic = Traffic()
        sizes = [len(ids) for _, ids in spec.batches]
        shares = spread(sizes, cluster.search_workers) or [()]
        if sizes and len(shares) < cluster.search_workers:
            log.warning(
                "cluster.search_workers = %d, but the search subset has %d batches of at most %d images, and a batch "
                "is never split: it is searched by %d workers",
                cluster.search_workers,
                len(sizes),
                max(sizes),
                len(shares),
            )
        shortage = no_room(self._request, len(shares), nodes_of_cluster())
        if shortage:
            if cluster.session_address is None:
                raise WorkerError(shortage)
            log.warning("%s; waiting %g s for nodes", shortage, cluster.start_timeout_seconds)
        self._group = reserve(self._request, len(shares), cluster.placement, listener) if together else None
        self.members = [Member(index, owned) for index, owned in enumerate(shares)]
        for member in self.members:
            self._start(member, ())

    @property
    def num_devices(self) -> int:
        """GPUs (CPU: cores) that the workers hold, rounded up."""
        return -int(-len(self.members) * self._request.devices // 1)

    def enlist(self, num_blocks: int) -> None:
        """Start the workers that have had no batch, as far as there are blocks of the memory bank and room for them."""
        if self._group is not None:
            return
        room = self._request.room(nodes_of_cluster())
        wanted = min(self._cluster.search_workers, num_blocks, room)
        first = max(member.index for member in self.members) + 1
        for index in range(first, first + wanted - len(self.members)):
            self.members.append(Member(index, ()))
            self._start(self.members[-1], ())

    def stop(self) -> None:
        """End all workers."""
        for member in self.members:
            ray.kill(member.actor)
        if self._group is not None:
            remove_placement_group(self._group)
        log.info(
            "search workers: at most %d calls per worker and iteration, largest object %.1f kB",
            self.traffic.most_calls,
            self.traffic.largest_bytes / 1000,
        )

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._clock = clock

    def ask(self, question: Question, inbox: Inbox, interim: Sequence[Subnetwork]) -> None:
        """Put a question to all workers; those that are lost are replaced and asked again."""
        self._drop_late(inbox)
        self.traffic.weigh(question)
        calls: dict[Reference, Member] = {}

        def send(member: Member) -> None:
            inbox.expect(member.owned, member.attempt)
            self.traffic.call(member.index, question.iteration)
            calls[self._call(member, partial(member.answer, question))] = member

        for member in self.members:
            if question.concerns(member.owned):
                send(member)
        while calls:
            for member, found in self._next(calls, interim):
                if isinstance(found, Answer):
                    for key, value in found.reports():
                        inbox.take(key, value)
                elif member in self.members:
                    send(member)

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        """Build all blocks; every worker takes the next one once it is open and free.

        The search has ended: from now on nobody owns a batch, so who is replaced reads no picture of the search.
        """
        for member in self.members:
            member.owned = ()
        waiting = list(order.missing)
        blocks: dict[Member, MissingBlock] = {}
        calls: dict[Reference, Member] = {}
        while waiting or blocks:
            for member in self.members:
                if member in calls.values():
                    continue
                if member.opening is not None:
                    calls[member.opening] = member
                elif waiting:
                    blocks[member] = waiting.pop(0)
                    calls[self._call(member, partial(member.build_block, order, blocks[member]))] = member
            for member, found in self._next(calls, ()):
                block = blocks.pop(member, None)
                if isinstance(found, BuiltBlock):
                    on_block(found)
                elif block is not None:
                    waiting.insert(0, block)

    def _call(self, member: Member, call: Callable[[], Reference]) -> Reference:
        """Call a worker, or wait for its opening first; returns the reference to wait for."""
        if member.opening is not None:
            return member.opening
        member.deadline = time.monotonic() + self._cluster.timeout_seconds
        return call()

    def _next(
        self, calls: dict[Reference, Member], interim: Sequence[Subnetwork]
    ) -> Iterator[tuple[Member, Answer | BuiltBlock | None]]:
        """Wait until something happens; yield workers with what they say, None where the call must be repeated."""
        done = self._wait(calls)
        now = time.monotonic()
        late = [] if done else [reference for reference, member in calls.items() if member.deadline <= now]
        for reference in [*done, *late]:
            if reference not in calls:
                continue  # a worker that was lost just before has handed its batches to this one
            member = calls.pop(reference)
            try:
                if reference in late:
                    self._given_up.append(reference)
                    raise TimeoutError(f"no answer from process {member.process or '(not started)'} {member.host}")
                reply: Reply = unpack(ray.get(reference), self.traffic.weigh)
            except RayTaskError as error:
                raise _own_error(error, member.index) from error
            except (RayError, TimeoutError) as error:
                heir = self._replace(member, error, interim)
                for other in [known for known, owner in calls.items() if owner is heir]:
                    self._given_up.append(other)
                    del calls[other]
                yield member, None
                if heir is not member:
                    yield heir, None
                continue
            if self._clock is not None:
                self._clock.busy(reply.busy_seconds * self._workload.devices_per_worker)
            match reply:
                case Answer():
                    member.losses = 0
                    yield member, reply
                case Timed(value=Place() as place):
                    member.opening, member.host, member.process = None, place.host, place.process
                    yield member, None
                case Timed(value=BuiltBlock() as built):
                    member.losses = 0
                    yield member, built

    def _wait(self, calls: dict[Reference, Member]) -> list[Reference]:
        """Wait for a reply, until the first deadline; returns those that are there, none where it has passed.

        Raises:
            Stopped: the listener has asked for it.
        """
        deadline = min(member.deadline for member in calls.values())
        while True:
            stop_where_asked(self._listener)
            patience = deadline - time.monotonic()
            done, _ = ray.wait(list(calls), num_returns=1, timeout=min(max(patience, 0), WAIT_SECONDS))
            if done or patience <= WAIT_SECONDS:
                return done

    def _drop_late(self, inbox: Inbox) -> None:
        """Let the inbox see what replaced workers have said since; it drops and counts it."""
        if not self._given_up:
            return
        done, self._given_up = ray.wait(self._given_up, num_returns=len(self._given_up), timeout=0)
        for reference in done:
            try:
                answer = unpack(ray.get(reference), self.traffic.weigh)
            except RayError:
                continue  # it has died, as it should
            if isinstance(answer, Answer):
                for key, value in answer.reports():
                    inbox.take(key, value)

    def _replace(self, member: Member, error: Exception, interim: Sequence[Subnetwork]) -> Member:
        """Start another process in place of a lost one, as often as the job allows; returns whom it belongs to."""
        has_started = member.opening is None
        what = ("did not answer" if has_started else "did not start") if isinstance(error, TimeoutError) else "died"
        shortage = no_room(self._request, len(self.members), nodes_of_cluster()) if what == "did not start" else None
        if shortage and (len(self.members) == 1 or (member.owned and member.attempt == 1)):
            raise WorkerError(
                f"search worker {member.index} found no place in cluster.start_timeout_seconds = "
                f"{self._cluster.start_timeout_seconds:g}: {shortage}. What is committed is kept: then run the same "
                "command again"
            ) from error
        ray.kill(member.actor)
        if shortage:
            return self._hand_over(member, shortage, interim)
        member.losses += 1
        if member.losses > self._cluster.max_restarts:
            trouble = (
                f"search worker {member.index} {what}, the {member.losses}. time in a row; cluster.max_restarts is "
                f"{self._cluster.max_restarts}"
            )
            if what == "did not start" and not member.owned and len(self.members) > 1:
                return self._hand_over(member, trouble, interim)
            raise WorkerError(
                f"{trouble}. What is committed is kept: look for lack of memory on its node, or for cores that another "
                f"job holds (free now: {_free()}), then run the same command again. "
                f"Last words: {' '.join(str(error).split())[:300]}"
            ) from error
        log.warning("search worker %d %s; starting another one (%d)", member.index, what, member.losses)
        self._start(member, interim)
        return member

    def _hand_over(self, member: Member, trouble: str, interim: Sequence[Subnetwork]) -> Member:
        """Give the batches of a worker that is lost for good, if any, to the worker with the fewest batches."""
        self.members.remove(member)
        if not member.owned:
            log.warning("%s. Going on without search worker %d", trouble, member.index)
            return member
        heir = min(self.members, key=lambda other: (len(other.owned), other.index))
        log.warning("%s. Going on without search worker %d: %d takes over", trouble, member.index, heir.index)
        heir.owned = tuple(sorted((*heir.owned, *member.owned)))
        heir.attempt = max(heir.attempt, member.attempt)
        ray.kill(heir.actor)
        self._start(heir, interim)
        return heir

    def _start(self, member: Member, interim: Sequence[Subnetwork]) -> None:
        """Start a process for a worker and let it open network and images."""
        member.attempt += 1
        member.host, member.process = "", 0
        options = {
            "num_cpus": self._request.cpus,
            "num_gpus": self._request.gpus,
            "max_restarts": 0,
            "scheduling_strategy": self._strategy(),
        }
        arguments = (self._workload, self._spec, member.owned, member.attempt)
        self.traffic.weigh(arguments)
        self.traffic.weigh(interim)
        member.actor = SearchWorker.options(**options).remote(*arguments)  # type: ignore[attr-defined]
        member.open(interim)
        patience = self._cluster.start_timeout_seconds * 2**member.losses  # a machine under load is not pressed further
        member.deadline = time.monotonic() + patience

    def _strategy(self) -> Any:
        """Where Ray puts a worker."""
        if self._group is not None:
            return PlacementGroupSchedulingStrategy(self._group)
        return "SPREAD" if self._cluster.placement == "spread" else "DEFAULT"


def _free() -> str:
    found = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{found.get('CPU', 0):g} CPU, {found.get('GPU', 0):g} GPU"


def _own_error(error: RayTaskError, worker: int) -> EkgError:
    """The error that a worker raised on purpose, or a short account of one that it did not."""
    cause = error.cause
    if isinstance(cause, EkgError):
        return cause
    if is_out_of_memory(cause):
        return WorkerError(f"search worker {worker}: {OUT_OF_MEMORY}")
    return WorkerError(f"search worker {worker} failed: {type(cause).__name__}: {cause}")
