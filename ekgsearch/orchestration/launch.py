"""From a job to a finished run directory: the session, the backend, and the signals."""

import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from ekgsearch.errors import StorageError
from ekgsearch.experiment import Job
from ekgsearch.orchestration.session import ray_session
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.environment import num_cores
from ekgsearch.runtime.ledger import INTERRUPTED_EXIT_CODE
from ekgsearch.runtime.progress import configure_logging
from ekgsearch.workers.backend import InProcessBackend

log = logging.getLogger(__name__)


def launch(job: Job, *, continue_anyway: bool, verbose: bool, run: Callable[..., object] = run_job) -> Path:
    """Run a job, on Ray where it asks for workers, and return its run directory.

    SIGTERM stops the run with exit status 75; the same command continues it.

    Args:
        job: what to do.
        continue_anyway: continue although something differs; see `run_job`.
        verbose: log details.
        run: what runs the job, with the arguments of `run_job`.

    Raises:
        EkgError: whatever stops a run; see `run_job`.
    """
    run_dir = job.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"output = {job.output}: the run directory cannot be made: {error}") from error
    configure_logging(run_dir, verbose)
    signal.signal(signal.SIGTERM, _stop)
    if job.cluster.search_workers == 0 and job.finetune.workers == 1 and not job.cluster.session_address:
        run(job, InProcessBackend(), continue_anyway=continue_anyway)
        return run_dir
    cores = math.ceil(max(job.cluster.search_workers, job.finetune.workers) * job.cluster.cores_per_worker)
    if cores > num_cores() and not job.cluster.session_address:
        log.warning(
            "the workers of this job hold %d cores and this machine has %d, so they slow each other down: lower "
            "cluster.threads_per_worker, cluster.search_workers or finetune.workers",
            cores,
            num_cores(),
        )
    with ray_session(job.cluster, num_cpus=max(cores, num_cores())):
        from ekgsearch.orchestration.backend import RayBackend  # it imports Ray, which the session has prepared

        signal.signal(signal.SIGTERM, _stop)  # Ray has put a handler of its own in its place, which aborts
        run(job, RayBackend(job.cluster), continue_anyway=continue_anyway)
    return run_dir


def _stop(_signal: int, _frame: FrameType | None) -> None:
    log.warning("asked to stop (SIGTERM): what is committed is kept; the same command continues")
    raise SystemExit(INTERRUPTED_EXIT_CODE)
