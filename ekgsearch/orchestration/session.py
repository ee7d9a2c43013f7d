"""One Ray session per run: a cluster that is running already, or a local one that ends with the run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ekgsearch.errors import WorkerError
from ekgsearch.sections.cluster import ClusterSection

log = logging.getLogger(__name__)


LOOPBACK = ("127.", "localhost", "[::1]")


def prepare_environment(cluster: ClusterSection) -> None:
    """Set what Ray reads from the environment; it must be called before Ray is imported.

    A local session, and a cluster whose address is a loopback one, stay on the loopback interface: by itself Ray
    replaces 127.0.0.1 by an address that other machines reach.
    """
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # Ray's own is 15: any other process of the machine would come first
    }
    address = cluster.session_address
    if address is None:
        # It listens on loopback only and lives as long as this process: it needs no token, and no cloud takes it back.
        defaults |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    elif _token_file().is_file():
        defaults["RAY_AUTH_MODE"] = "token"  # a client does not look for its token unless told to
    if address is None or address.startswith(LOOPBACK):
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the switch by which Ray keeps to 127.0.0.1
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


@contextmanager
def ray_session(cluster: ClusterSection, num_cpus: int) -> Iterator[None]:
    """Connect to a cluster, or start a local session on loopback without dashboard.

    Args:
        cluster: where to connect; a local session where it has no `session_address`.
        num_cpus: cores that a local session offers.

    Raises:
        WorkerError: the cluster cannot be reached or refuses the token.
    """
    prepare_environment(cluster)
    address = cluster.session_address
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
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise WorkerError(
            f"no Ray session at {address or 'this machine'}: {' '.join(str(error).split())[:300]}; "
            "check that the head is running at this address and that this machine has its token: the same "
            "~/.ray/auth_token, or RAY_AUTH_TOKEN_PATH (cluster/README.md)"
        ) from error
    cores = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    log.info("ray %s: %s, %g cores", ray.__version__, address or "local session", cores)
    try:
        yield
    finally:
        ray.shutdown()
