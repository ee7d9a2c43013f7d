"""A sweep on Ray Tune, which places trials and applies ASHA; the truth is in journals of our own."""

import logging
import math
import shutil
import threading
import time
from concurrent.futures import Future, wait
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ekgsearch.errors import EkgError, WorkerError
from ekgsearch.jobfile import fields_text, job_of_text
from ekgsearch.orchestration.launch import run_folder
from ekgsearch.orchestration.placement import nodes_of_cluster
from ekgsearch.orchestration.trial import JUDGED, TrialRunner
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.progress import Progress
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.sweep.course import Step, as_step
from ekgsearch.sweep.job import STOPPED_FILE, SweepJob
from ekgsearch.sweep.record import Entry, Record
from ekgsearch.sweep.resources import cores_of_trial, gpus_of_trial
from ekgsearch.sweep.results import lacks_latency
from ekgsearch.sweep.watch import Watch
from ekgsearch.workers.backend import InProcessBackend

log = logging.getLogger(__name__)

SCRATCH = "scratch"
"""Folder of what Ray Tune itself writes; removed at the end."""

STOP_SECONDS = 20.0
"""Time in which all trials end by themselves where the command is interrupted."""

POLL_SECONDS = 0.2

MOST_EPOCHS = 10_000
"""Epochs up to which asha has halts; a trial never reaches more of them than it has epochs."""


def tune_trials(record: Record, watch: Watch) -> None:
    """Run trials until there are no more, or the sweep is to end; a Ray session is there.

    Args:
        record: of the sweep.
        watch: told of every step; says when the sweep is to end.

    Raises:
        EkgError: the record or a file cannot be written.
        WorkerError: Ray Tune failed.
    """
    section, sweep = record.sweep.section, record.sweep
    scratch = sweep.folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    make_folder(scratch)
    proposals = _Proposals(record, watch)

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it repeats what the watch says, and has other words

    def fit() -> None:
        tune.run(
            TrialRunner,
            name="tune",
            num_samples=-1,
            search_alg=proposals,
            scheduler=_scheduler(record),
            stop=_End(watch),
            resources_per_trial=_resources(sweep),
            max_concurrent_trials=section.concurrent or _most_concurrent(sweep),
            reuse_actors=not sweep.any_trial().job.asks_for_workers,  # else what they started may outlive a stop
            storage_path=str(scratch),
            raise_on_failed_trial=False,
            verbose=0,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        )

    try:
        _wait(fit, watch)
    finally:
        proposals.close()
        shutil.rmtree(scratch, ignore_errors=True)
    if proposals.error is not None:
        raise proposals.error


def measure_latencies_of(record: Record) -> None:
    """Measure the networks of finished trials one after the other, in a process with a trial's resources.

    What cannot be measured is told and left out.
    """
    resources = _resources(record.sweep).bundles[0]
    entries = [entry for entry in record.entries.values() if lacks_latency(entry)]
    progress = Progress("latency", len(entries), "networks", log)
    for entry in entries:
        job = entry.trial.job
        measuring = _measure.options(num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0))
        call = measuring.remote(fields_text(job))
        try:
            ray.get(call)
        except (RayError, EkgError) as error:
            log.warning("latency of trial %s: not measured: %s", entry.trial.name, _last_line(error))
        except BaseException:
            ray.cancel(call, force=True)
            raise
        progress.advance()
    progress.close()


@ray.remote(max_retries=0)
def _measure(text: str) -> None:
    """Measure the latencies of a finished run; its tables get them."""
    job = job_of_text(text)
    with run_folder(job, console=False):
        run_job(job, InProcessBackend())


class _Proposals(Searcher):
    """Gives Ray Tune the trials of the record, and writes down what becomes of them.

    Errors of the record end the sweep; Ray Tune would swallow them.
    """

    def __init__(self, record: Record, watch: Watch) -> None:
        super().__init__()
        self._record, self._watch = record, watch
        self._names: dict[str, str] = {}
        self.error: EkgError | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        if self._watch.end_reason:
            return Searcher.FINISHED
        try:
            trial = self._record.next_trial()
            if trial is None:
                return Searcher.FINISHED
            self._names[trial_id] = trial.name
            self._watch.began(self._record.entries[trial.name])
            return {"job": fields_text(trial.job)}
        except EkgError as error:
            self._give_up(error)
            return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Write down an accuracy."""
        try:
            self._take(self._names[trial_id], as_step(result))
        except EkgError as error:
            self._give_up(error)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write down how a trial has ended."""
        name = self._names.pop(trial_id, None)
        if name is None:
            return
        step = as_step(result) if result and "event" in result else Step(event="", words="its start")
        try:
            if not error:
                self._take(name, step)  # the result that ends a trial comes here alone
            self._end(name, step, died=error)
        except EkgError as failure:
            self._give_up(failure)

    def close(self) -> None:
        """Write down that those trials that are still open go on with the next call of the command."""
        reason = self._watch.end_reason or "the command was interrupted"
        for trial_id in list(self._names):
            name = self._names.pop(trial_id)
            if not self._record.is_writable:
                continue
            self._record.end(name, "interrupted", reason)
            self._watch.ended(self._record.entries[name])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def _take(self, name: str, step: Step) -> None:
        self._watch.add(name, step)
        if step.accuracy is not None:
            self._record.report(name, step.progress, step.accuracy)

    def _end(self, name: str, step: Step, *, died: bool) -> None:
        record, watch, entry = self._record, self._watch, self._record.entries[name]
        if died:
            record.end(name, "died", "its process was killed or ran out of memory; the same command goes on with it")
        elif step.event == "finished":
            record.end(name, "finished", metrics=watch.metrics_of(entry))
        elif step.event == "failed":
            record.end(name, "failed", step.words)
        else:
            by = "the sweep" if watch.end_reason else "the scheduler"
            reason = f"stopped by {by} after {step.words}"
            _tell(entry, reason)
            record.end(name, "interrupted" if watch.end_reason else "stopped", watch.end_reason or reason)
        watch.ended(entry)

    def _give_up(self, error: EkgError) -> None:
        self.error = self.error or error
        self._watch.end(f"the sweep cannot be recorded: {error}")


class _End(tune.Stopper):
    """Ends the whole experiment where the watch says so."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial ends by its own results; the scheduler decides about that."""
        return False

    def stop_all(self) -> bool:
        """Whether the sweep is to end."""
        return bool(self._watch.end_reason)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """What Ray Tune pickles of it."""
        return tune.stopper.NoopStopper, ()


def _scheduler(record: Record) -> TrialScheduler:
    """The scheduler, which knows what earlier calls of the command have seen."""
    section = record.sweep.section
    if section.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        time_attr="progress",
        metric=JUDGED,
        mode="max",
        grace_period=section.grace_epochs,
        reduction_factor=section.factor,
        max_t=MOST_EPOCHS,
        stop_last_trials=False,
    )
    known: dict[str, Any] = {}
    nobody: Any = None  # asha does not look at who asks
    for entry, progress, accuracy in record.events():
        if not entry.is_over or progress >= entry.trial.job.finetune.epochs:
            continue  # it reports all of them again; or it was the last one, which asha does not see
        name = entry.trial.name
        if name not in known:
            known[name] = SimpleNamespace(trial_id=name)
            scheduler.on_trial_add(nobody, known[name])
        scheduler.on_trial_result(nobody, known[name], {"progress": progress, JUDGED: accuracy})
    return scheduler


def _resources(sweep: SweepJob) -> tune.PlacementGroupFactory:
    """What a trial holds: its cores and GPUs, or nothing where it takes workers itself."""
    if sweep.any_trial().job.asks_for_workers:
        return tune.PlacementGroupFactory([{"CPU": 0, "memory": 1e6}])  # without anything Ray refuses it as empty
    bundle = {"CPU": cores_of_trial(sweep)}
    return tune.PlacementGroupFactory([bundle | ({"GPU": sweep.section.gpus} if sweep.section.gpus else {})])


def _most_concurrent(sweep: SweepJob) -> int:
    """Trials at a time that the cluster has room for; those beyond would wait for each other's workers."""
    nodes = nodes_of_cluster()
    room = [sum(node.get("CPU", 0) for node in nodes) / cores_of_trial(sweep)]
    gpus, wanted = sum(node.get("GPU", 0) for node in nodes), gpus_of_trial(sweep)
    if gpus and wanted:
        room.append(gpus / wanted)
    return max(1, math.floor(min(room) + 1e-9))


def _tell(entry: Entry, reason: str) -> None:
    """Let the run directory of a trial say who has stopped it; the run reads it when it is ended."""
    path = entry.trial.job.run_dir / STOPPED_FILE
    if path.parent.is_dir():
        write_atomically(path, reason.encode())


def _wait(fit: Any, watch: Watch) -> None:
    """Run Ray Tune in a thread, since in the main one it takes over the signals.

    Raises:
        WorkerError: it failed.
    """
    finished: Future[None] = Future()

    def work() -> None:
        try:
            fit()
            finished.set_result(None)
        except BaseException as error:
            finished.set_exception(error)

    threading.Thread(target=work, name="tune", daemon=True).start()
    try:
        while not wait([finished], timeout=POLL_SECONDS).done:
            watch.look()
    except BaseException:
        watch.end("the command was interrupted")
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and not wait([finished], timeout=POLL_SECONDS).done:
            pass
        raise
    error = finished.exception()
    if isinstance(error, EkgError):
        raise error
    if error is not None:
        watch.end(f"Ray Tune failed: {_last_line(error)}")
        raise WorkerError(f"{watch.end_reason}; the same command goes on") from error


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:300]
