"""From a job to a finished run directory: its log, the session and the backend."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ekgsearch.errors import StorageError
from ekgsearch.experiment import Job
from ekgsearch.orchestration.session import ray_session
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.environment import num_cores
from ekgsearch.runtime.listener import SILENT, Listener
from ekgsearch.runtime.progress import logging_to
from ekgsearch.workers.backend import InProcessBackend

log = logging.getLogger(__name__)


@contextmanager
def run_folder(job: Job, verbose: bool = False, *, console: bool = True) -> Iterator[Path]:
    """Make the run directory of a job and log to it for the length of a block.

    Args:
        job: what is run.
        verbose: log details.
        console: whether standard error gets the log as well.

    Yields:
        The run directory.

    Raises:
        StorageError: it cannot be made.
    """
    run_dir = job.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"output = {job.output}: the run directory cannot be made: {error}") from error
    with logging_to(run_dir, verbose, console=console):
        yield run_dir


def launch(
    job: Job,
    *,
    continue_anyway: bool = False,
    verbose: bool = False,
    listener: Listener = SILENT,
    run: Callable[..., object] = run_job,
    in_process: bool = False,
) -> Path:
    """Run a job, on Ray where it asks for workers, and return its run directory.

    It may be called in any thread; signal handlers, logging, random generators, threads and back ends of torch are as
    before when it returns.

    Args:
        job: what to do.
        continue_anyway: continue although something differs; see `run_job`.
        verbose: log details.
        listener: told of what happens; may ask for a clean stop.
        run: what runs the job, with the arguments of `run_job`.
        in_process: compute in this process also where $RAY_ADDRESS names a cluster; the job asks for no workers.

    Raises:
        EkgError: whatever stops a run; see `run_job`.
    """
    with run_folder(job, verbose) as run_dir:
        if in_process or not (job.asks_for_workers or job.cluster.session_address):
            run(job, InProcessBackend(), listener=listener, continue_anyway=continue_anyway)
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

            run(job, RayBackend(job.cluster), listener=listener, continue_anyway=continue_anyway)
    return run_dir
