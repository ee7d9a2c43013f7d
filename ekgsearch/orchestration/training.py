"""Distributed data parallel training through Ray Train."""

import logging
import math
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, get_device

from ekgsearch.errors import EkgError, WorkerError
from ekgsearch.orchestration.checkpoints import RayCheckpoints
from ekgsearch.orchestration.events import EventReader, FileListener
from ekgsearch.orchestration.trainer import EndableTrainer
from ekgsearch.runtime.ledger import Clock
from ekgsearch.runtime.listener import SILENT, Listener, stop_where_asked, stopped
from ekgsearch.runtime.progress import configure_logging
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.workers.training import TrainingSpec, pending, train_all

log = logging.getLogger(__name__)

BUSY_FILE = "busy-{rank}.txt"

POLL_SECONDS = 0.2
"""Time between two looks of the driver at what a training tells and at whether it is to stop."""

STOP_PATIENCE_SECONDS = 3.5
"""Time in which the processes can end by themselves where a stop is asked for."""

REACHED_FILE = "reached.txt"
"""Training, epochs and further steps of the newest checkpoint; every checkpoint changes it."""


def fit(
    spec: TrainingSpec,
    *,
    folder: Path,
    workers: int,
    cluster: ClusterSection,
    clock: Clock,
    listener: Listener = SILENT,
) -> None:
    """Train the networks of a spec with Ray Train on `workers` processes.

    The run lives under `folder`; the same call again continues after the last checkpoint. Processes that are lost are
    started again here, not by Ray Train, which would do so after any error. Failures count in a row: a new checkpoint
    since the last one begins the count anew.

    The listener is told of steps and epochs. Where it asks for a stop, the processes end between two steps, or are
    ended where that takes longer than `STOP_PATIENCE_SECONDS`.

    Raises:
        Stopped: the listener has asked for it.
        WorkerError: the processes died more often in a row than the job allows.
        EkgError: what a process raised on purpose, such as a loss that is not finite.
    """
    if not pending(spec.tasks, folder):
        return
    make_folder(folder)  # a stop may be asked for before Ray Train makes it
    failures, reached = 0, _reached(folder)
    events = EventReader(folder, listener, _epochs_of(reached))
    while True:
        stop_where_asked(listener)
        events.begin()
        try:
            _fit_interruptibly(_trainer(spec, folder, workers, cluster, events.attempt), events, listener)
            return
        except ray.train.TrainingFailedError as error:
            _raise_own_error(error)
            before, reached = reached, _reached(folder)
            failures = failures + 1 if reached == before else 1
            if failures > cluster.max_restarts:
                raise WorkerError(
                    f"training stopped: its processes failed {failures} times in a row without a new checkpoint, more "
                    f"than cluster.max_restarts = {cluster.max_restarts}. The last checkpoint is kept and the same "
                    f"command continues. Last words: {_last_words(error)}"
                ) from error
            log.warning("training processes died; starting others (%d): %s", failures, _last_words(error))
        finally:
            events.end()
            for path in folder.glob(BUSY_FILE.format(rank="*")):
                clock.busy(float(path.read_text(encoding="utf-8")) * spec.devices_per_worker)
                path.unlink()


def _reached(folder: Path) -> str:
    """How far the training has come; empty before its first checkpoint."""
    path = folder / REACHED_FILE
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _epochs_of(reached: str) -> dict[str, int]:
    """Epochs that are kept, by network."""
    if not reached:
        return {}
    network, epochs, _ = reached.rsplit(maxsplit=2)
    return {network: int(epochs)}


def _trainer(spec: TrainingSpec, folder: Path, workers: int, cluster: ClusterSection, attempt: int) -> EndableTrainer:
    use_gpu = spec.workload.device == "cuda"
    return EndableTrainer(
        _train_loop,
        train_loop_config={"spec": spec, "folder": folder, "attempt": attempt},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cluster.cores_per_worker, "GPU": use_gpu}
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(cluster.timeout_seconds)),
        run_config=RunConfig(  # type: ignore[call-arg]  # mypy follows the older class of the same name
            name="ray",
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _fit_interruptibly(trainer: EndableTrainer, events: EventReader, listener: Listener) -> None:
    """Fit in a thread of its own: in the main thread Ray takes over Ctrl-C and ends the process without a word.

    Meanwhile events are passed on.

    Raises:
        Stopped: the listener has asked for it before the training had ended.
    """
    finished: Future[None] = Future()

    def work() -> None:
        try:
            trainer.fit()
            finished.set_result(None)
        except BaseException as error:
            finished.set_exception(error)

    threading.Thread(target=work, name="fit", daemon=True).start()
    reason, deadline = "", math.inf
    while not wait([finished], timeout=POLL_SECONDS).done:
        events.pass_on()
        if not reason and (reason := listener.stop_reason()):
            deadline = time.monotonic() + STOP_PATIENCE_SECONDS
            events.ask_to_stop(reason)
        if time.monotonic() >= deadline:
            deadline = math.inf
            trainer.end()
    if reason and finished.exception():
        raise stopped(reason) from finished.exception()
    finished.result()


def _train_loop(config: dict[str, Any]) -> None:
    """What every process runs."""
    spec: TrainingSpec = config["spec"]
    folder: Path = config["folder"]
    rank = ray.train.get_context().get_world_rank()
    logging.getLogger().setLevel(logging.WARNING)  # Ray logs each report with all its metrics
    configure_logging(folder.parent if rank == 0 else None)
    if rank != 0:
        logging.getLogger("ekgsearch").setLevel(logging.WARNING)
    device = get_device()
    start = time.perf_counter()
    try:
        train_all(
            spec,
            folder,
            device=str(device),
            port_of=lambda task: RayCheckpoints(task.name, folder / REACHED_FILE),
            listener=FileListener(folder, config["attempt"]),
            tells_epochs_before=True,
        )
    finally:
        busy = folder / BUSY_FILE.format(rank=rank)
        write_atomically(busy, f"{time.perf_counter() - start:.3f}".encode())
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _last_words(error: Exception) -> str:
    """The end of an error text of several lines, as one line."""
    return " ".join(str(error).split())[-400:]


def _raise_own_error(error: Exception) -> None:
    """Raise what a process raised on purpose, if one did: to train again would end alike."""
    for cause in (getattr(error, "worker_failures", None) or {}).values():
        original = getattr(cause, "cause", cause)
        if isinstance(original, EkgError):
            raise original from error
