"""Where the state of a training goes after each epoch, and how it comes back."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ekgsearch.errors import NetworkError, ResumeError
from ekgsearch.finetune.metrics import EpochMetrics
from ekgsearch.finetune.step import TrainState
from ekgsearch.runtime.checkpoint import load_state, save_state
from ekgsearch.storage.files import PARTIAL_SUFFIX, sync_folder, write_error

Facts = Mapping[str, Any]
"""What a training depends on, in plain values; a checkpoint of other facts is refused."""


class CheckpointPort(Protocol):
    """A place for checkpoints: a local folder, or a trainer that uploads and reports them."""

    def latest(self) -> Path | None:
        """Return a local folder with the newest complete checkpoint, the same on all processes, or None."""

    def save(self, write: Callable[[Path], None] | None, metrics: Mapping[str, float]) -> None:
        """Keep one checkpoint; called by every process once per epoch.

        Args:
            write: fills an existing empty folder; None on all processes but rank 0, which have nothing to write.
            metrics: measurements of the epoch; `epoch` counts from 1.
        """


class FolderCheckpoints:
    """Checkpoints in a local folder, one sub-folder per epoch, made in two phases."""

    def __init__(self, folder: Path, *, num_kept: int = 2) -> None:
        """Use a folder.

        Args:
            folder: made when the first checkpoint is written.
            num_kept: newest checkpoints that are kept, at least 1.
        """
        self._folder = folder
        self._num_kept = max(1, num_kept)

    def latest(self) -> Path | None:
        """Return the folder of the highest epoch, or None."""
        complete = self._complete()
        return complete[-1] if complete else None

    def save(self, write: Callable[[Path], None] | None, metrics: Mapping[str, float]) -> None:
        """Write a temporary folder, rename it, remove the oldest.

        Raises:
            StorageError: the disk refuses.
        """
        if write is None:
            return
        path = self._folder / f"epoch-{int(metrics['epoch']):06d}"
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


def save_epoch(port: CheckpointPort, state: TrainState, facts: Facts, *, is_writer: bool) -> None:
    """Hand the state after an epoch to a place for checkpoints."""
    port.save(partial(write_checkpoint, state, facts) if is_writer else None, state.history[-1].to_dict())


def write_checkpoint(state: TrainState, facts: Facts, folder: Path) -> None:
    """Write network, optimiser and measured epochs; random numbers need no state, they derive from seed and epoch."""
    save_state(
        folder,
        {
            "facts": dict(facts),
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict()["state"],
            "history": [metrics.to_dict() for metrics in state.history],
        },
    )


def read_checkpoint(state: TrainState, facts: Facts, folder: Path) -> None:
    """Put a state back to what a checkpoint holds.

    Args:
        state: changed in place.
        facts: what this training depends on.
        folder: filled by `write_checkpoint`.

    Raises:
        ResumeError: the checkpoint is of another training; the message names the differences.
        NetworkError: its tensors do not fit the network.
        StorageError: it is missing or damaged.
    """
    saved = load_state(folder)
    found = saved["facts"]
    differences = [
        f"{name}: this training has {facts.get(name)}, the checkpoint {found.get(name)}"
        for name in sorted({*facts, *found})
        if facts.get(name) != found.get(name)
    ]
    if differences:
        raise ResumeError(
            f"{folder} is a checkpoint of another training: {'; '.join(differences)}; "
            "run the job that it belongs to, or remove the folder to start anew"
        )
    try:
        state.model.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise NetworkError(
            f"{folder} does not fit the network that is to be trained: {error}; remove the folder to start anew"
        ) from error
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": groups})
    state.history[:] = [EpochMetrics.from_dict(values) for values in saved["history"]]
