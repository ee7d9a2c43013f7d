"""Several nodes, each a real raylet: one is lost in the search, and the run ends as if nothing had happened."""

import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from command_line import JOB, RunCommand, command, environment
from nodes import cluster_of
from small_search import SmallSearch

from ekgsearch.jobfile import load_job
from ekgsearch.orchestration.backend import RayBackend
from ekgsearch.orchestration.placement import Request, nodes_of_cluster
from ekgsearch.orchestration.session import ray_session
from ekgsearch.pipeline.devices import Devices, find_devices
from ekgsearch.sections.cluster import ClusterSection

pytestmark = pytest.mark.ray


def wait_for_iterations(journal: Path, number: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b'"kind":"iteration"') >= number:
            return
        time.sleep(0.005)


def test_a_search_outlives_the_loss_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = SmallSearch.make(tmp_path)
    expected = small.undisturbed(tmp_path / "undisturbed.jsonl")
    journal = tmp_path / "journal.jsonl"
    with cluster_of(2, 2) as (cluster, nodes):
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)

        def lose() -> None:
            wait_for_iterations(journal, 3)
            cluster.remove_node(nodes[1], allow_graceful=False)

        with ray_session(ClusterSection(), num_cpus=0), small.on_ray(2, cpus_per_worker=1.0) as (team, crew):
            thief = threading.Thread(target=lose)
            thief.start()
            assert small.run(team, journal) == expected
            thief.join()
            assert sorted(member.attempt for member in crew.members) == [1, 2]  # one on each node
    assert "died; starting another one" in caplog.text


def test_the_gpus_of_a_cluster_are_found_by_a_driver_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = load_job(tmp_path / "job.yaml", ["cluster.search_workers=1"])
    backend = RayBackend(job.cluster)
    assert backend.cluster_has_gpus is None
    with cluster_of(1) as (cluster, _):
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with ray_session(job.cluster, num_cpus=0):
            assert find_devices(job, backend.cluster_has_gpus) == Devices("cpu", "cpu", "cpu")
            cluster.add_node(num_cpus=1, num_gpus=1)  # it claims one; nobody computes on it here
            devices = find_devices(job, backend.cluster_has_gpus)
            assert devices == Devices(here="cpu", search="cuda", finetune="cuda")
            assert Request.of(job.cluster, devices.search).room(nodes_of_cluster()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cores", "said"),
    [
        (2, "died; starting another one"),
        (1, "Going on without search worker"),  # no place is left for it
    ],
)
def test_a_node_that_is_lost_leaves_no_trace_in_the_journal_of_a_whole_run(
    cores: int, said: str, tmp_path: Path, ekgsearch: RunCommand
) -> None:
    SmallSearch.make(tmp_path)  # writes weights, so that no training precedes the search
    settings = [f"net.weights={tmp_path / 'weights.safetensors'}", "search.batch_size=12"]
    settings += ["warmup.epochs=0", "finetune.epochs=1"]
    shared = [part for setting in settings for part in ("--set", setting)]
    reference, lossy = tmp_path / "reference", tmp_path / "lossy"
    for path in (reference, lossy):
        path.mkdir()
        (path / "job.yaml").write_text(JOB.format(output=path / "run"))
    finished = ekgsearch("run", reference / "job.yaml", *shared)
    assert finished.returncode == 0, finished.stderr

    with cluster_of(cores, cores) as (cluster, nodes):
        arguments = [*shared, "--address", cluster.address, "--set", "cluster.search_workers=2"]
        arguments += ["--set", "cluster.start_timeout_seconds=45"]
        driver = subprocess.Popen(
            command("run", lossy / "job.yaml", *arguments), env=environment(), stderr=subprocess.PIPE, text=True
        )
        journal = lossy / "run" / "journal.jsonl"
        wait_for_iterations(journal, 3)
        cluster.remove_node(nodes[1], allow_graceful=False)
        assert b'"kind":"search"' not in journal.read_bytes(), "the search ended before the node was lost"
        _, errors = driver.communicate(timeout=400)
        assert driver.returncode == 0, errors
        assert said in errors
        assert journal.read_bytes() == (reference / "run" / "journal.jsonl").read_bytes()
