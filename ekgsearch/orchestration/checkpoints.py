"""Checkpoints of distributed training, reported to Ray Train."""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode

from ekgsearch.errors import StorageError
from ekgsearch.storage.files import write_atomically

log = logging.getLogger(__name__)

TASK_FILE = "task.txt"
"""File of a checkpoint that names the training it belongs to; one fit trains several networks in turn."""

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Pauses between attempts to store a checkpoint; Ray Train itself gives up at the first error."""


class RayCheckpoints:
    """Checkpoints of one training, reported to Ray Train."""

    def __init__(self, task: str, reached: Path) -> None:
        """Report the checkpoints of a training.

        Args:
            task: the training.
            reached: file that says how far the newest checkpoint that counts has come.
        """
        self._task = task
        self._reached = reached
        self._scratch: list[tempfile.TemporaryDirectory[str]] = []
        self._has_saved = False

    def latest(self) -> Path | None:
        """Return a local copy of the newest checkpoint if it is of this training, else None.

        Ray Train remembers what these processes started from; what was saved since, its controller knows.
        """
        checkpoint = ray.train.get_checkpoint()
        if self._has_saved:
            checkpoint = _reported()[-1].checkpoint
        if checkpoint is None:
            return None
        folder = tempfile.TemporaryDirectory(prefix="ekgsearch-checkpoint-")
        self._scratch.append(folder)
        path = Path(checkpoint.to_directory(folder.name))
        return path if (path / TASK_FILE).read_text(encoding="utf-8") == self._task else None

    def save(self, write: Callable[[Path], None] | None, metrics: Mapping[str, float]) -> None:
        """Report a checkpoint; rank 0 brings it and waits until it counts.

        `ray.train.report` returns before the controller has written down that the checkpoint exists; a process killed
        just then would resume from the one before.

        Raises:
            StorageError: it could not be stored.
        """
        self._has_saved = True
        if write is None:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory(prefix="ekgsearch-checkpoint-") as folder:
            write(Path(folder))
            (Path(folder) / TASK_FILE).write_text(self._task, encoding="utf-8")
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder), checkpoint_upload_fn=_store)
        _reported()
        reached = f"{self._task} {int(metrics['epoch'])} {int(metrics.get('step', 0))}"
        write_atomically(self._reached, reached.encode())


def _reported() -> list[ray.train.ReportedCheckpoint]:
    """Wait until every reported checkpoint counts; the newest is the last."""
    mode = CheckpointConsistencyMode.COMMITTED
    reported: list[ray.train.ReportedCheckpoint] = ray.train.get_all_reported_checkpoints(consistency_mode=mode)
    return reported


def _store(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Copy a checkpoint to the storage of the run, again where that fails.

    Raises:
        StorageError: every attempt failed.
    """
    storage = ray.train.get_context().get_storage()
    return retrying(lambda: storage.persist_current_checkpoint(checkpoint, name), f"checkpoint {name}")


def retrying(store: Callable[[], Checkpoint], what: str, pauses: tuple[float, ...] = RETRY_SECONDS) -> Checkpoint:
    """Call a function that may fail for a moment.

    Args:
        store: writes the same files again each time.
        what: name of what is stored, for messages.
        pauses: seconds to wait before each further attempt.

    Raises:
        StorageError: it failed after all of them.
    """
    for attempt, pause in enumerate((*pauses, None), start=1):
        try:
            return store()
        except OSError as error:
            if pause is None:
                raise StorageError(
                    f"{what} could not be stored in {attempt} attempts: {error}; the one before it is kept, see that "
                    "the storage is there and has space, then the same command continues"
                ) from error
            log.warning("%s could not be stored (attempt %d): %s; again in %g s", what, attempt, error, pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
