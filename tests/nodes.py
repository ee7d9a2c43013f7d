"""A cluster of several nodes on this machine, each a real raylet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOTICED_SOON = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
"""By itself Ray takes about 13 s to notice that a node is lost."""


@contextmanager
def cluster_of(*cores: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head that holds no worker, and nodes with so many cores."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": NOTICED_SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [cluster.add_node(num_cpus=number) for number in cores]
    finally:
        cluster.shutdown()
