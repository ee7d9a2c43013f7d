"""Cost of Ray in a search: whole iterations by Ray workers against the same workers in plain processes.

Compared: the same iterations of the same search, in turn (ABAB), by search workers on Ray and by the worker of the
in-process backend in as many processes of its own that a pipe joins to the driver. Both sides have the same batches per
worker, one torch thread per worker, the same driver code (questions, accounts, sums, decisions), and the machine to
themselves while the other one waits; both make the same decisions, which is checked. So a difference is Ray's.

Processor time is that of the driver and of all its worker processes; on Ray's side also of everything that Ray runs.
The wait is the wall time of the questions of an iteration less the work of the slowest worker at each: messages,
queues and, on a machine with other work, the delays of both sides alike. Wall times need a quiet machine.
"""

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ekgsearch.bench.base import BenchSettings, Measurement, abab, ekg_section, job_in_small, ratio
from ekgsearch.errors import EkgError, JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import Mark, Positive, Text
from ekgsearch.jobfile import load_job
from ekgsearch.methods.base import Decision
from ekgsearch.methods.ekg.method import ekg_settings
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.orchestration.placement import spread
from ekgsearch.orchestration.session import prepare_environment, ray_session
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.environment import torch_threads
from ekgsearch.runtime.ledger import Clock
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.backend import InProcessCrew
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Answer, Question
from ekgsearch.workers.spec import BuiltBlock, SearchSpec
from ekgsearch.workers.team import BankOrder, Crew, Team
from ekgsearch.workers.worker import Worker
from ekgsearch.workers.workload import Workload

TICKS = os.sysconf("SC_CLK_TCK")


class Settings(BenchSettings):
    """What is searched, by how many workers, for how long."""

    job: Annotated[Text, Mark.PATH] = Field(description="job whose search is run")
    overrides: tuple[str, ...] = Field((), description="fields of this job to replace, each field=value")
    workers: int = Field(
        2, ge=0, le=4096, description="search workers of either side; 0: both in this process, without Ray"
    )
    pairs: Positive = Field(6, description="iterations measured on either side")

    @property
    def lacking(self) -> str:
        """Ray, which it is about."""
        return (
            ""
            if not self.workers or importlib.util.find_spec("ray")
            else "it needs Ray, and there is none in this environment"
        )

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """One iteration of the job's smoke form, in this process."""
        changes, notes = job_in_small(self.job, self.overrides)
        return {**changes, "workers": 0, "pairs": 1}, notes


class PipeCrew:
    """Workers in plain processes, one pipe each: what Ray is compared with."""

    def __init__(self, workload: Workload, spec: SearchSpec, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._clock: Clock | None = None
        self._pipes: list[Connection] = []
        self.processes = []
        for owned in spread([len(ids) for _, ids in spec.batches], num_workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, workload, spec, owned), daemon=True)
            process.start()
            there.close()  # so that a worker that ends closes the last end of its own
            self._pipes.append(here)
            self.processes.append(process)

    def stop(self) -> None:
        """End all processes."""
        for pipe, process in zip(self._pipes, self.processes, strict=True):
            with suppress(ConnectionError):  # it has ended already
                pipe.send(None)
            process.join()

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._clock = clock

    def ask(self, question: Question, inbox: Inbox, interim: Sequence[Subnetwork]) -> None:
        """Put a question to all workers and take their answers.

        Raises:
            EkgError: a worker has ended.
        """
        for pipe in self._pipes:
            with suppress(ConnectionError):  # it has ended; no answer will come
                pipe.send(question)
        for index, pipe in enumerate(self._pipes):
            answer = self._answer(index, pipe)
            if self._clock is not None:
                self._clock.busy(answer.busy_seconds)
            for key, value in answer.reports():
                inbox.take(key, value)

    def _answer(self, index: int, pipe: Connection) -> Answer:
        try:
            answer: Answer = pipe.recv()
        except (EOFError, ConnectionError):
            process = self.processes[index]
            process.join()
            raise EkgError(
                f"plain worker process {index} ended with exit code {process.exitcode} before it answered; its own "
                "message is above"
            ) from None
        return answer

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        """No search builds a bank."""
        raise EkgError("this benchmark measures a search; it builds no memory bank")


def _serve(pipe: Connection, workload: Workload, spec: SearchSpec, owned: tuple[int, ...]) -> None:
    try:
        worker = Worker(workload, spec, owned)
    except EkgError as error:
        raise SystemExit(str(error)) from error
    while (question := pipe.recv()) is not None:
        pipe.send(worker.answer(question))


class LongestWork(Clock):
    """Collects the work of each question by worker."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[float] = []

    def busy(self, seconds: float) -> None:
        """Note the work of one worker."""
        super().busy(seconds)
        self.spans.append(seconds)


class Side:
    """One side of the comparison: each call of `step` makes one iteration of its search.

    Attributes:
        wait_share: of each iteration, wall time of its questions less the slowest worker's work, over its wall time.
        wall: seconds of each iteration.
        cpu: processor seconds of each iteration.
    """

    def __init__(self, setup: Setup, crew: Crew, processes: Callable[[], Sequence[int]]) -> None:
        self._crew = crew
        self._processes = processes
        self._work = LongestWork()
        self._waited = 0.0
        crew.charge(self._work)
        spec = setup.search_spec
        settings = ekg_settings(ekg_section(setup.job), spec.tie_tolerance)
        self._search = EkgSearch(setup.graph, Team(self, spec), setup.budget, settings).run()
        self.decisions: list[Decision] = []
        self.wait_share: list[float] = []
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self) -> None:
        """Make one iteration.

        Raises:
            JobError: the search has ended.
        """
        self._waited = 0.0
        others = self._cpu_of_others()
        start, cpu = time.perf_counter(), time.process_time()
        decision = next(self._search, None)
        if decision is None:
            raise JobError(
                f"pairs: the search ended after {len(self.decisions) - 1} iterations; lower pairs, or set a larger "
                "search.reduction"
            )
        self.decisions.append(decision)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        self.wall.append(wall)
        self.cpu.append(cpu + self._cpu_of_others() - others)
        self.wait_share.append(self._waited / wall)

    def ask(self, question: Question, inbox: Inbox, interim: Sequence[Subnetwork]) -> None:
        """Put a question to the workers, and note how long nobody worked."""
        self._work.spans.clear()
        start = time.perf_counter()
        self._crew.ask(question, inbox, interim)
        self._waited += time.perf_counter() - start - max(self._work.spans)

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        """Leave it to the workers."""
        self._crew.build_bank(order, on_block)

    def charge(self, clock: Clock) -> None:
        """Leave it to the workers."""
        self._crew.charge(clock)

    def _cpu_of_others(self) -> float:
        return sum(_cpu_seconds(pid) for pid in self._processes())


def run(settings: Settings) -> list[Measurement]:
    """Measure both sides."""
    job = load_job(Path(settings.job), settings.overrides)
    return _on_ray(settings, job) if settings.workers else _in_this_process(settings, job)


def _in_this_process(settings: Settings, job: Job) -> list[Measurement]:
    """Measure the search against itself."""
    setup = set_up(job)
    spec = setup.search_spec
    with (
        tempfile.TemporaryDirectory(prefix="ekgsearch-bench-") as folder,
        torch_threads(job.cluster.threads_per_worker),
    ):
        weights = Path(folder) / "weights.safetensors"
        save_tensors(weights, setup.network.state_dict(), {})
        workload = setup.workload(weights)

        def side() -> Side:
            worker = Worker(workload, spec, [index for index, _ in spec.batches])
            return Side(setup, InProcessCrew(worker, workload.devices_per_worker), lambda: [])

        first, second = side(), side()
        abab(first.step, second.step, pairs=settings.pairs)
    case = f"this process, {job.net.name} on {job.data.name}"
    return [
        Measurement.of(case, "iteration", "s", first.wall[1:]),
        ratio(case, "wall time, against itself", second.wall[1:], first.wall[1:]),
    ]


def _on_ray(settings: Settings, job: Job) -> list[Measurement]:
    """Measure Ray against plain processes."""
    cluster = ClusterSection(search_workers=settings.workers, threads_per_worker=job.cluster.threads_per_worker)
    setup = set_up(job)
    spec = setup.search_spec
    prepare_environment(cluster)  # before Ray is imported
    from ekgsearch.orchestration.workers import RayCrew

    with tempfile.TemporaryDirectory(prefix="ekgsearch-bench-") as folder, ExitStack() as stack:
        weights = Path(folder) / "weights.safetensors"
        save_tensors(weights, setup.network.state_dict(), {})
        workload = setup.workload(weights)
        plain_crew = PipeCrew(workload, spec, settings.workers)
        stack.callback(plain_crew.stop)
        plain_processes = [process.pid for process in plain_crew.processes if process.pid]
        stack.enter_context(ray_session(cluster, num_cpus=settings.workers))
        ray_crew = RayCrew(workload, spec, cluster)
        stack.callback(ray_crew.stop)
        plain = Side(setup, plain_crew, lambda: plain_processes)
        on_ray = Side(setup, ray_crew, lambda: [pid for pid in _descendants(os.getpid()) if pid not in plain_processes])
        abab(plain.step, on_ray.step, pairs=settings.pairs)
        if plain.decisions != on_ray.decisions:
            raise EkgError("the two sides made different decisions, so their times do not compare")
        case = f"{len(ray_crew.members)} workers, {job.net.name} on {job.data.name}"
        return [
            Measurement.of(case, "iteration, plain processes", "s", plain.wall[1:]),
            Measurement.of(case, "iteration, Ray", "s", on_ray.wall[1:]),
            ratio(case, "wall time, Ray / plain", on_ray.wall[1:], plain.wall[1:]),
            Measurement.of(case, "processor time, plain processes", "s", plain.cpu[1:]),
            ratio(case, "processor time, Ray / plain", on_ray.cpu[1:], plain.cpu[1:]),
            Measurement.of(case, "wait, plain processes", "% of the iteration", _percent(plain.wait_share[1:])),
            Measurement.of(case, "wait, Ray", "% of the iteration", _percent(on_ray.wait_share[1:])),
            Measurement.count(case, "calls per worker and iteration, most", "calls", max(_calls(ray_crew, settings))),
            Measurement.count(case, "largest object sent", "kB", ray_crew.traffic.largest_bytes / 1000),
        ]


def _calls(crew: object, settings: Settings) -> Iterator[int]:
    traffic = crew.traffic  # type: ignore[attr-defined]
    return (traffic.calls(iteration) for iteration in range(1, settings.pairs + 1))


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _cpu_seconds(pid: int) -> float:
    """Processor seconds of a process so far, those of its threads included; 0 where it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _descendants(pid: int) -> list[int]:
    """All processes below one."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found
