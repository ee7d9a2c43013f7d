"""One Ray session per run: a cluster that is running already, or a local one that ends with the run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ekgsearch.errors import WorkerError
from ekgsearch.experiment import ClusterSection

log = logging.getLogger(__name__)


@contextmanager
def ray_session(cluster: ClusterSection, num_cpus: int) -> Iterator[None]:
    """Connect to a cluster, or start a local session on loopback without dashboard.

    Args:
        cluster: where to connect; `cluster.address`, else RAY_ADDRESS, else a local session.
        num_cpus: cores that a local session offers.

    Raises:
        WorkerError: the cluster cannot be reached or refuses the token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if not address:
        # A local session listens on loopback only and lives as long as this process: it needs no token.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # for nodes that a cloud takes back
    import ray

    try:
        if address:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING, configure_logging=False)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=cluster.object_store_mb * 2**20,
                log_to_driver=True,
                logging_level=logging.WARNING,
                configure_logging=False,
                # Without a dashboard Ray Train warns on and on that it cannot ask one; errors are still shown.
                logging_config=ray.LoggingConfig(log_level="ERROR"),
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise WorkerError(
            f"no Ray session at {address or 'this machine'}: {' '.join(str(error).split())[:300]}; "
            "check the address, that the head is running, and that this machine has its token (cluster/README.md)"
        ) from error
    cores = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    log.info("ray %s: %s, %g cores", ray.__version__, address or "local session", cores)
    try:
        yield
    finally:
        ray.shutdown()
