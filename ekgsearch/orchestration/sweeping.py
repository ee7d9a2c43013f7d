"""From the file of a sweep to its finished tables."""

import logging
import math
import os
from collections.abc import Sequence

from ekgsearch.errors import Stopped, WorkerError
from ekgsearch.orchestration.session import ray_session
from ekgsearch.runtime.environment import num_cores
from ekgsearch.runtime.progress import logging_to
from ekgsearch.storage.files import make_folder
from ekgsearch.sweep.job import SweepJob, Trial
from ekgsearch.sweep.proposals import proposer_of
from ekgsearch.sweep.record import Record, opened
from ekgsearch.sweep.resources import cores_of_trial
from ekgsearch.sweep.results import lacks_latency
from ekgsearch.sweep.tables import write_sweep
from ekgsearch.sweep.watch import Watch

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1_000_000.0
"""How long workers of a trial may wait for their place, which other trials hold meanwhile."""


def run_sweep(sweep: SweepJob, trials: Sequence[Trial] | None, *, verbose: bool = False) -> None:
    """Run a sweep to its end, or go on with it.

    Args:
        sweep: the sweep.
        trials: its trials, where they are known.
        verbose: log details.

    Raises:
        Stopped: the budget was spent before the last trial.
        WorkerError: more trials failed than the file allows, or none finished.
        EkgError: the folder belongs to another sweep or is held by another driver, the cluster cannot be reached, or
            the disk refuses. What is finished is kept, and the same command goes on.
    """
    make_folder(sweep.folder)
    proposer = proposer_of(sweep, trials)
    total = len(trials) if trials is not None else sweep.section.budget.trials
    assert total is not None, "a sweep whose trials are not known has a number of them"
    with logging_to(sweep.folder, verbose), opened(sweep, proposer) as record:
        write_sweep(record)
        watch = Watch(record, total)
        try:
            _run(sweep, record, watch)
        finally:
            watch.close()
            rows = write_sweep(record)
    if watch.has_failed or not any(row.state in ("finished", "stopped") for row in rows):
        raise WorkerError(
            watch.end_reason or "no trial has finished; the reasons are in tables/trials.parquet and above"
        )
    if watch.end_reason:
        raise Stopped(watch.end_reason)


def _run(sweep: SweepJob, record: Record, watch: Watch) -> None:
    """Run what is left of a sweep in a Ray session; none is started where nothing is left."""
    cluster = sweep.any_trial().job.cluster
    if not (record.has_more or any(lacks_latency(entry) for entry in record.entries.values())):
        log.info("%s has finished before; its tables are written again", sweep.folder)
        return
    watch.look(at_once=True)
    if watch.end_reason:
        return
    patient = cluster.model_copy(update={"start_timeout_seconds": PATIENCE_SECONDS})
    prepare_tune()
    with ray_session(patient, num_cpus=max(math.ceil(cores_of_trial(sweep)), num_cores()), shows_workers=False):
        from ekgsearch.orchestration.tuning import measure_latencies_of, tune_trials  # they import Ray

        if record.has_more:
            tune_trials(record, watch)
        write_sweep(record)
        if not watch.end_reason:
            measure_latencies_of(record)


def prepare_tune() -> None:
    """Set what Ray Tune reads from the environment: no loggers and no checkpoints of its own."""
    for name, value in {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        "TUNE_WARN_THRESHOLD_S": "1000000",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every step has an accuracy
        "RAY_AIR_NEW_OUTPUT": "0",
    }.items():
        os.environ.setdefault(name, value)
