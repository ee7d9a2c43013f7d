"""One Ray session per run: a cluster that is running already, or a local one that ends with the run."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ekgsearch.errors import WorkerError
from ekgsearch.orchestration.address import require_head, token_file
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
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(cluster.start_timeout_seconds),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # Ray's own is 15: any other process of the machine would come first
    }
    address = cluster.session_address
    if address is None:
        # It listens on loopback only and lives as long as this process: it needs no token, and no cloud takes it back.
        defaults |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    elif token_file().is_file():
        defaults["RAY_AUTH_MODE"] = "token"  # a client does not look for its token unless told to
    if address is None or address.startswith(LOOPBACK):
        defaults["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the switch by which Ray keeps to 127.0.0.1
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def ray_session(cluster: ClusterSection, num_cpus: int, *, shows_workers: bool = True) -> Iterator[None]:
    """Connect to a cluster, or start a local session on loopback without dashboard.

    Args:
        cluster: where to connect; a local session where it has no `session_address`.
        num_cpus: cores that a local session offers.
        shows_workers: whether what workers write to standard error is shown here.

    Raises:
        WorkerError: the cluster cannot be reached or refuses the token.
    """
    with _environment_kept(), _handlers_kept() as put_back:
        prepare_environment(cluster)
        with _connected(cluster, num_cpus, shows_workers):
            put_back()  # Ray has put a handler of its own in the place of that for SIGTERM, which aborts
            yield


@contextmanager
def _connected(cluster: ClusterSection, num_cpus: int, shows_workers: bool) -> Iterator[None]:
    """Connect, or start a session, in a prepared environment."""
    address = cluster.session_address
    if address:
        require_head(address)
    import ray

    # Where several clusters run on this machine, Ray tells so and takes the latest; the line below says which.
    logging.getLogger("ray._private.services").setLevel(logging.ERROR)
    try:
        if address:
            with _sole_address(address):
                ray.init(
                    address=address,
                    log_to_driver=shows_workers,
                    logging_level=logging.WARNING,
                    configure_logging=False,
                )
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=cluster.object_store_mb * 2**20,
                log_to_driver=shows_workers,
                logging_level=logging.WARNING,
                configure_logging=False,
                # Without a dashboard Ray Train warns on and on that it cannot ask one; errors are still shown.
                logging_config=ray.LoggingConfig(log_level="ERROR"),
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise WorkerError(
            f"no Ray session at {address or 'this machine'}: {_reason(error)}; check the address, that the head is "
            "running there, and that this machine has the same token as the head (cluster/README.md)"
        ) from error
    cores = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    found = ray.get_runtime_context().gcs_address if address else "local session"
    log.info("ray %s: %s, %g cores", ray.__version__, found, cores)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Leave the variables of the environment as they are."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _handlers_kept() -> Iterator[Callable[[], None]]:
    """Yield what puts the signal handlers back, which happens in the end as well; other threads cannot change any."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    try:
        yield put_back
    finally:
        put_back()


@contextmanager
def _sole_address(address: str) -> Iterator[None]:
    """Name an address in the environment as well: where RAY_ADDRESS says another one, Ray ignores its argument."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


def _reason(error: Exception) -> str:
    """Say in one line why Ray did not connect, in the words of this command line where Ray's are about another one."""
    text = " ".join(str(error).split())
    if text.startswith(("Could not find any running Ray instance", "Found multiple active Ray instances")):
        return f"{'none is' if text.startswith('Could') else 'several are'} running on this machine; give HOST:PORT"
    return text[:300]
