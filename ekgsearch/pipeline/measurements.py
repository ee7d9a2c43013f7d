"""Latencies as they were measured on this machine, kept next to the journal."""

import logging
from pathlib import Path

from ekgsearch.errors import StorageError
from ekgsearch.pipeline.context import RunContext
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.sealed import read_sealed, sealed

log = logging.getLogger(__name__)


def save_measurements(context: RunContext, values: dict[str, float]) -> None:
    """Keep what was measured on this machine and so does not belong in the journal: latencies and their ratios."""
    write_atomically(_measurements_path(context), sealed(values))


def has_measurements(context: RunContext) -> bool:
    """Whether `save_measurements` has kept them and they are sound; they can be measured again."""
    if not _measurements_path(context).exists():
        return False
    try:
        read_sealed(_measurements_path(context))
    except StorageError as error:
        log.warning("%s; measuring again", error)
        return False
    return True


def _measurements_path(context: RunContext) -> Path:
    return context.folder / "measurements.json"


def read_measurements(context: RunContext) -> dict[str, float]:
    """Read what `save_measurements` has kept.

    Raises:
        StorageError: the file is missing or damaged.
    """
    measurements: dict[str, float] = read_sealed(_measurements_path(context))
    return measurements
