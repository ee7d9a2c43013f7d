"""Long-lived Ray workers that own fixed batches, replaced when they are lost."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ekgsearch.errors import EkgError, WorkerError
from ekgsearch.experiment import ClusterSection
from ekgsearch.pipeline.backend import BankOrder
from ekgsearch.pipeline.worker import SearchPlan, Timed, Worker
from ekgsearch.pipeline.workload import Workload
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.ledger import Clock
from ekgsearch.search.base import Candidate, Evaluation, GroupScores, mean_over_batches, sum_over_batches
from ekgsearch.search.evaluate import evaluations

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Member:
    """One worker of the team: its batches, its current actor, and how often it was replaced."""

    index: int
    owned: tuple[int, ...]
    actor: Any
    restarts: int = 0


class RayTeam:
    """Evaluates on several workers; the answers are those of one worker, whatever their number and fate.

    Each worker owns whole batches for the length of the run. A worker that dies or does not answer in time is replaced
    by a new one, which recomputes the ensemble knowledge of its batches from the interim sub-networks and repeats the
    call. Answers of a replaced worker are never read.
    """

    def __init__(self, workload: Workload, plan: SearchPlan, cluster: ClusterSection) -> None:
        self._workload = workload
        self._plan = plan
        self._cluster = cluster
        self._history: list[Subnetwork] = []
        self._clock: Clock | None = None
        sizes = [len(ids) for _, ids in plan.batches]
        shares = spread(sizes, cluster.search_workers)
        self._members = [Member(index, owned, self._start(owned)) for index, owned in enumerate(shares)]

    def stop(self) -> None:
        """End all workers."""
        for member in self._members:
            ray.kill(member.actor)

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._clock = clock

    def begin(self, history: Sequence[Subnetwork]) -> Evaluation:
        """Set the ensemble knowledge; return the evaluation of the last network."""
        self._history = list(history)
        return mean_over_batches(_merged(self._ask_all("begin", self._history)), self._plan.nominal_batch)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Importance of every channel."""
        if count > len(self._history):
            self._history.append(current)
        return sum_over_batches(_merged(self._ask_all("scores", current, count)))

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates in their order."""
        answers = _merged(self._ask_all("evaluate", current, candidates))
        return evaluations(answers, len(candidates), self._plan.nominal_batch)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates that nearly tie by the masked network."""
        answers = _merged(self._ask_all("settle", candidates))
        return evaluations(answers, len(candidates), self._plan.nominal_batch)

    def build_bank(self, order: BankOrder, on_block: Callable[[int], None]) -> None:
        """Build all blocks; every worker takes the next one as it becomes free."""
        waiting = list(order.blocks)
        running: dict[Any, tuple[Member, int]] = {}
        idle = list(self._members)
        while waiting or running:
            while waiting and idle:
                member, block = idle.pop(), waiting.pop(0)
                running[member.actor.build_block.remote(order.spec, order.teachers, block, order.uri)] = (member, block)
            done, _ = ray.wait(list(running), num_returns=1, timeout=self._cluster.timeout_seconds)
            for reference in done or list(running):
                member, block = running.pop(reference)
                idle.append(member)
                try:
                    on_block(self._take(ray.get(reference, timeout=0)))
                except (RayActorError, GetTimeoutError) as error:
                    self._replace(member, error)
                    waiting.insert(0, block)
                except RayTaskError as error:
                    raise _own_error(error, member.index) from error

    def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker; replace those that are lost and ask them again."""
        references = {member.index: getattr(member.actor, method).remote(*arguments) for member in self._members}
        return [self._answer(member, references[member.index], method, arguments) for member in self._members]

    def _answer(self, member: Member, reference: Any, method: str, arguments: tuple[Any, ...]) -> Any:
        while True:
            try:
                return self._take(ray.get(reference, timeout=self._cluster.timeout_seconds))
            except (RayActorError, GetTimeoutError) as error:
                self._replace(member, error)
            except RayTaskError as error:
                raise _own_error(error, member.index) from error
            reference = member.actor.begin.remote(self._history)
            if method != "begin":
                reference = getattr(member.actor, method).remote(*arguments)

    def _replace(self, member: Member, error: Exception) -> None:
        """Start another worker in place of a lost one, as often as the job allows."""
        member.restarts += 1
        what = "did not answer in time" if isinstance(error, GetTimeoutError) else "died"
        if member.restarts > self._cluster.max_restarts:
            raise WorkerError(
                f"search worker {member.index} {what} for the {member.restarts}th time; cluster.max_restarts is "
                f"{self._cluster.max_restarts}. What is committed is kept: look for lack of memory on its node, then "
                f"run the same command again. Last words: {' '.join(str(error).split())[:300]}"
            ) from error
        log.warning("search worker %d %s; starting another one (%d)", member.index, what, member.restarts)
        ray.kill(member.actor)
        member.actor = self._start(member.owned)

    def _start(self, owned: tuple[int, ...]) -> Any:
        num_gpus = 1 if self._workload.device == "cuda" else 0
        options = {"num_cpus": self._cluster.cpus_per_worker, "num_gpus": num_gpus, "max_restarts": 0}
        return _RemoteWorker.options(**options).remote(self._workload, self._plan, owned)

    def _take(self, answer: Timed[Any]) -> Any:
        if self._clock is not None:
            self._clock.busy(answer.busy_seconds)
        return answer.value


_RemoteWorker = ray.remote(Worker)


def spread(sizes: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Give every batch to the worker with the fewest images so far; never more workers than batches.

    Args:
        sizes: images of each batch.
        num_workers: workers that are wanted, at least 1.

    Returns:
        For each worker the indices of its batches, ascending; it depends on the arguments alone.
    """
    parts: list[list[int]] = [[] for _ in range(min(num_workers, len(sizes)))]
    for batch in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        min(parts, key=lambda part: sum(sizes[index] for index in part)).append(batch)
    return [tuple(sorted(part)) for part in parts]


def _merged(answers: Sequence[Any]) -> dict[int, Any]:
    return {batch: value for answer in answers for batch, value in answer.items()}


def _own_error(error: RayTaskError, worker: int) -> EkgError:
    """The error that a worker raised on purpose, or a short account of one that it did not."""
    cause = error.cause
    if isinstance(cause, EkgError):
        return cause
    return WorkerError(f"search worker {worker} failed: {type(cause).__name__}: {cause}")
