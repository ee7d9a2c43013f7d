"""Places for the checkpoints of a training."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from ekgsearch.storage.files import PARTIAL_SUFFIX, sync_folder, write_error


class CheckpointPort(Protocol):
    """A place for checkpoints: a local folder, or a trainer that uploads and reports them."""

    def latest(self) -> Path | None:
        """Return a local folder with the newest complete checkpoint, the same on all processes, or None."""

    def save(self, write: Callable[[Path], None] | None, metrics: Mapping[str, float]) -> None:
        """Keep one checkpoint; called by every process at the same step. When it returns, the checkpoint counts.

        Args:
            write: fills an existing empty folder; None on all processes but rank 0, which have nothing to write.
            metrics: `epoch`, epochs that are done; `step`, steps of the next one that are done, where there are any;
                measurements of the last epoch, where there is one.
        """


class FolderCheckpoints:
    """Checkpoints in a local folder, one sub-folder each, made in two phases: what has its name is complete."""

    def __init__(self, folder: Path, *, num_kept: int = 2) -> None:
        """Use a folder.

        Args:
            folder: made when the first checkpoint is written.
            num_kept: newest checkpoints that are kept, at least 1.
        """
        self._folder = folder
        self._num_kept = max(1, num_kept)

    def latest(self) -> Path | None:
        """Return the folder of the highest epoch and step, or None."""
        complete = self._complete()
        return complete[-1] if complete else None

    def save(self, write: Callable[[Path], None] | None, metrics: Mapping[str, float]) -> None:
        """Write a temporary folder, rename it, remove the oldest.

        Raises:
            StorageError: the disk refuses.
        """
        if write is None:
            return
        path = self._folder / checkpoint_name(metrics)
        part = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
        try:
            for stale in (part, path):
                shutil.rmtree(stale, ignore_errors=True)
            part.mkdir(parents=True)
            write(part)
            os.replace(part, path)
            sync_folder(self._folder)
        except OSError as error:
            raise write_error(path, error, 0) from error
        for old in self._complete()[: -self._num_kept]:
            shutil.rmtree(old, ignore_errors=True)

    def _complete(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("epoch-*") if path.is_dir())


def checkpoint_name(metrics: Mapping[str, float]) -> str:
    """Name of a checkpoint; names sort in the order of the training."""
    name = f"epoch-{int(metrics['epoch']):06d}"
    return f"{name}-step-{int(metrics['step']):09d}" if metrics.get("step") else name
