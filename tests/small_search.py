"""A small search whose journal is compared, workers that share it, and a saboteur that kills or stops workers."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import JOB

from ekgsearch.jobfile import load_job
from ekgsearch.methods.base import Evaluator, decisions_from_records
from ekgsearch.methods.ekg.method import ekg_settings
from ekgsearch.methods.ekg.racing import Racing
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.orchestration.backend import RayBackend
from ekgsearch.orchestration.placement import spread
from ekgsearch.orchestration.workers import RayCrew
from ekgsearch.pipeline.lines import content
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.ledger import Clock
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Question
from ekgsearch.workers.spec import BuiltBlock
from ekgsearch.workers.team import BankOrder, Team
from ekgsearch.workers.worker import Worker
from ekgsearch.workers.workload import Workload

TIE_TOLERANCE = 5e-4
"""Share of the lowest score within which candidates are settled: so much that the small search has near ties."""


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found += [int(folder.name), *children(int(folder.name))]
    return found


def worker_processes(pid: int, title: bytes = b"SearchWorker") -> list[int]:
    """Processes of this title below a driver, those that are just starting included."""
    found = []
    for child in children(pid):
        try:
            if title in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return sorted(found)


@dataclass(frozen=True)
class SmallSearch:
    """Ten iterations of ResNet-20 on the digits, on ten batches, so that up to ten workers have work."""

    setup: Setup
    workload: Workload

    @classmethod
    def make(cls, folder: Path, settings: Sequence[str] = ("search.batch_size=12",)) -> "SmallSearch":
        (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
        setup = set_up(load_job(folder / "job.yaml", settings))
        for module in setup.network.modules():
            if hasattr(module, "running_mean"):
                module.weight.data.fill_(0.8)  # fresh residual branches are closed, which makes scores trivial
        save_tensors(folder / "weights.safetensors", setup.network.state_dict(), {})
        return cls(setup, setup.workload(folder / "weights.safetensors"))

    def run(self, team: Evaluator, path: Path) -> bytes:
        """Search, or continue the search that the journal holds; returns the bytes of the journal."""
        settings = ekg_settings(self.setup.job.search, self.setup.search_spec.tie_tolerance)
        settings = replace(settings, tie_tolerance=TIE_TOLERANCE)
        search = EkgSearch(self.setup.graph, team, self.setup.budget, settings)
        with Journal.open(path) as journal:
            for decision in search.run(decisions_from_records(map(content, journal.lines), self.setup.graph.full())):
                journal.append("iteration", **decision.to_record())
        return path.read_bytes()

    def race(self, team: Team, path: Path, error: float) -> bytes:
        """As `run`, with racing candidates."""
        return self.run(Racing(team, range(len(self.setup.search_spec.batches)), error), path)

    def undisturbed(self, path: Path) -> bytes:
        """The journal of one worker in this process."""
        with InProcessBackend().team(self.workload, self.setup.search_spec) as team:
            return self.run(team, path)

    @contextmanager
    def on_ray(self, workers: int, **options: object) -> Iterator[tuple[Team, RayCrew]]:
        """A team on the Ray session that is there."""
        cluster = ClusterSection(**{"search_workers": workers, "cpus_per_worker": 0.25} | options)  # type: ignore[arg-type]
        with RayBackend(cluster).team(self.workload, self.setup.search_spec) as team:
            yield team, team._crew  # type: ignore[misc]


class SeveralWorkers:
    """Workers in this process that own their batches as those on Ray do; counts what each is asked."""

    def __init__(self, small: SmallSearch, number: int) -> None:
        spec = small.setup.search_spec
        shares = spread([len(ids) for _, ids in spec.batches], number)
        self._workers = [(Worker(small.workload, spec, owned), owned) for owned in shares]
        self.num_asked = [0] * number

    def ask(self, question: Question, inbox: Inbox, interim: Sequence[Subnetwork]) -> None:
        for index, (worker, owned) in reversed(list(enumerate(self._workers))):
            if question.concerns(owned):
                self.num_asked[index] += 1
                for key, value in worker.answer(question).reports():
                    inbox.take(key, value)

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        raise AssertionError("no memory bank here")

    def charge(self, clock: Clock) -> None:
        raise AssertionError("no ledger here")


class Saboteur(threading.Thread):
    """Sends a signal to a random worker process of this process's Ray session, at random moments, until it stops.

    Every moment may be hit: while a worker starts, opens its network, recomputes the ensemble knowledge, or answers.
    """

    def __init__(self, seed: int, signals: list[signal.Signals], longest_wait: float) -> None:
        super().__init__(daemon=True)
        self._generator = random.Random(seed)
        self._signals = list(signals)
        self._longest_wait = longest_wait
        self._over = threading.Event()
        self.hit: list[int] = []

    def run(self) -> None:
        while self._signals and not self._over.wait(self._generator.uniform(0, self._longest_wait)):
            processes = [pid for pid in worker_processes(os.getpid()) if pid not in self.hit]
            if processes and not self._over.is_set():
                victim = self._generator.choice(processes)
                os.kill(victim, self._signals.pop())
                self.hit.append(victim)

    def __enter__(self) -> "Saboteur":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
