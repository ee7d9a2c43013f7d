"""Several nodes, each a real raylet: one is lost in the search, and the run ends as if nothing had happened."""

import subprocess
import time
from pathlib import Path

import pytest
from command_line import JOB, RunCommand, command, environment
from small_search import SmallSearch

pytestmark = pytest.mark.ray

NOTICED_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
"""By itself Ray takes about 13 s to notice that a node is lost."""


def test_a_node_that_is_lost_in_the_search_leaves_no_trace_in_the_journal(
    tmp_path: Path, ekgsearch: RunCommand
) -> None:
    from ray.cluster_utils import Cluster

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

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": NOTICED_SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        arguments = [*shared, "--address", cluster.address, "--set", "cluster.search_workers=2"]
        driver = subprocess.Popen(
            command("run", lossy / "job.yaml", *arguments), env=environment(), stderr=subprocess.PIPE, text=True
        )
        journal = lossy / "run" / "journal.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and driver.poll() is None:
            if journal.exists() and journal.read_bytes().count(b'"kind":"iteration"') >= 3:
                break
            time.sleep(0.005)
        cluster.remove_node(nodes[1], allow_graceful=False)
        assert b'"kind":"search"' not in journal.read_bytes(), "the search ended before the node was lost"
        _, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
        assert "died; starting another one" in errors
        assert journal.read_bytes() == (reference / "run" / "journal.jsonl").read_bytes()
    finally:
        cluster.shutdown()
