"""Search workers on real Ray: lost ones are replaced, and nobody can tell from the decisions."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from command_line import JOB, RunCommand

from ekgsearch.errors import WorkerError
from ekgsearch.experiment import ClusterSection
from ekgsearch.jobfile import load_job
from ekgsearch.orchestration.session import ray_session
from ekgsearch.orchestration.workers import RayTeam, spread
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.search.base import Decision
from ekgsearch.search.ekg import EkgSearch, EkgSettings
from ekgsearch.storage.tensors import save_tensors

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(ClusterSection(), num_cpus=2):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def setup(folder: Path) -> Setup:
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    opened = set_up(load_job(folder / "job.yaml"))
    for module in opened.network.modules():
        if hasattr(module, "running_mean"):
            module.weight.data.fill_(0.8)  # fresh residual branches are closed, which makes scores trivial
    save_tensors(folder / "weights.safetensors", opened.network.state_dict(), {})
    return opened


class KillingTeam(RayTeam):
    """Kills one worker's process just before the n-th call, as lack of memory would."""

    def __init__(self, *arguments: object, fatal_calls: set[int], **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.fatal_calls, self.num_calls = fatal_calls, 0

    def _ask_all(self, method: str, *arguments: object) -> list[object]:
        self.num_calls += 1
        if self.num_calls in self.fatal_calls:
            victim = self._members[self.num_calls % len(self._members)]
            pid = ray.get(victim.actor.__ray_call__.remote(lambda _: os.getpid()))
            os.kill(pid, signal.SIGKILL)
        return super()._ask_all(method, *arguments)


def records(decisions: list[Decision]) -> list[dict]:
    return [decision.to_record() for decision in decisions]


def searched(setup: Setup, team: RayTeam) -> list[dict]:
    try:
        return records(list(EkgSearch(setup.graph, team, setup.budget, EkgSettings(step=0.4)).run()))
    finally:
        team.stop()


def cluster(workers: int, **options: object) -> ClusterSection:
    return ClusterSection(search_workers=workers, cpus_per_worker=0.5, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(setup: Setup, session: None, folder: Path) -> list[dict]:
    workload = setup.workload(folder / "weights.safetensors")
    return searched(setup, RayTeam(workload, setup.search_plan, cluster(1)))


def test_killed_workers_are_replaced_and_the_decisions_stay(setup: Setup, folder: Path, expected: list[dict]) -> None:
    workload = setup.workload(folder / "weights.safetensors")
    fatal = {2, 6, 9}  # a score pass, an evaluation and a commit: calls go begin, then (scores, evaluate, commit)
    team = KillingTeam(workload, setup.search_plan, cluster(2), fatal_calls=fatal)
    assert searched(setup, team) == expected
    assert sum(member.restarts for member in team._members) == len(fatal)


def test_a_worker_that_dies_too_often_stops_the_run_with_advice(setup: Setup, folder: Path, session: None) -> None:
    workload = setup.workload(folder / "weights.safetensors")
    options = cluster(1, max_restarts=1)
    team = KillingTeam(workload, setup.search_plan, options, fatal_calls={2, 3})
    with pytest.raises(WorkerError, match=r"died for the 2th time; cluster.max_restarts is 1"):
        searched(setup, team)


def test_a_worker_that_hangs_is_replaced(
    setup: Setup, folder: Path, expected: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = setup.workload(folder / "weights.safetensors")
    team = RayTeam(workload, setup.search_plan, cluster(1, timeout_seconds=15))
    pid = ray.get(team._members[0].actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    assert searched(setup, team) == expected
    assert team._members[0].restarts == 1


def test_every_batch_has_one_owner_and_work_is_even() -> None:
    sizes = [256] * 7 + [40]
    for workers in (1, 2, 3, 8, 20):
        parts = spread(sizes, workers)
        assert len(parts) == min(workers, 8)
        assert sorted(batch for part in parts for batch in part) == list(range(8))
        loads = [sum(sizes[batch] for batch in part) for part in parts]
        assert max(loads) - min(loads) <= 256
        assert all(list(part) == sorted(part) for part in parts)


def test_a_cluster_of_two_nodes_is_used_by_its_address(tmp_path: Path, ekgsearch: RunCommand) -> None:
    """Two real raylets; the run connects from a process of its own and its workers are spread over both."""
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        reference, spread_out = tmp_path / "reference", tmp_path / "spread"
        for path in (reference, spread_out):
            path.mkdir()
            (path / "job.yaml").write_text(JOB.format(output=path / "run"))
        assert ekgsearch("run", reference / "job.yaml").returncode == 0
        arguments = ["--address", nodes.address, "--set", "cluster.search_workers=2", "--set", "finetune.workers=2"]
        finished = ekgsearch("run", spread_out / "job.yaml", *arguments)
        assert finished.returncode == 0, finished.stderr

        def decisions(path: Path) -> list[bytes]:
            lines = (path / "run" / "journal.jsonl").read_bytes().splitlines()
            return [line for line in lines if b'"kind":"iteration"' in line or b'"kind":"bank"' in line]

        assert decisions(spread_out) == decisions(reference)
    finally:
        nodes.shutdown()
