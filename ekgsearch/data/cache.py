"""What was decoded or verified once and need not be again: files in the user's cache folder."""

import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ekgsearch.data.images import ArrayImages, array_hash
from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json, content_hash
from ekgsearch.storage.files import write_atomically, write_error
from ekgsearch.storage.sealed import read_sealed, sealed

logger = logging.getLogger(__name__)

_VERSION = 4
"""Raised when what is stored, or how it is decoded, changes."""


def cache_folder() -> Path:
    """Folder for what can be computed again: $XDG_CACHE_HOME/ekgsearch, by default ~/.cache/ekgsearch."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ekgsearch"


def source_key(kind: str, sources: Iterable[Path]) -> str:
    """Key of something derived from files: changes with their paths, sizes and modification times.

    A file that is missing, such as the target of a dangling link, counts as one: whoever reads it says what is wrong.
    """
    stats = [
        (os.fsencode(os.path.realpath(path)).decode(errors="backslashreplace"), *_size_and_time(path))
        for path in sources
    ]
    return content_hash([_VERSION, kind, stats])


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def locked(key: str, task: str, *, required: bool) -> Iterator[None]:
    """Let one process of the machine do a task while the others wait for it; the lock vanishes with the process.

    Args:
        key: from `source_key`; who gives another key does not wait.
        task: what is done, for the message to those who wait, such as `verifying the pictures of /data/train`.
        required: whether a cache folder that cannot be written or locked is an error; otherwise it is a warning, and
            nobody waits for anybody.

    Raises:
        StorageError: there is no lock, and one is required.
    """
    with contextlib.ExitStack() as held:
        path = cache_folder() / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("w", encoding="ascii"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process of this machine, which is %s", task)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if required:
                raise write_error(path, error, 0) from error
            logger.warning("%s without a lock, since %s: other processes may do the same work", task, error)
        yield


def cached_images(key: str, decode: Callable[[], tuple[np.ndarray, np.ndarray]]) -> ArrayImages:
    """Decode images once and map them into memory from then on; processes of one machine share the pages.

    Of the processes that need the same images at once, one decodes and the others wait. The checksum is verified at
    each opening. A cache that is damaged or cannot be written is a warning, no error.

    Args:
        key: from `source_key`.
        decode: gives pixels (N, 3, H, W), uint8, and labels (N,), int64.
    """
    with locked(key, "decoding the same images", required=False):
        stored = _load_images(key)
        return _decoded_images(key, decode) if stored is None else stored


def _decoded_images(key: str, decode: Callable[[], tuple[np.ndarray, np.ndarray]]) -> ArrayImages:
    images, labels = decode()
    images_file, labels_file = _npy(images), _npy(labels)
    fields = {
        "images": hashlib.sha256(images_file).hexdigest(),
        "labels": hashlib.sha256(labels_file).hexdigest(),
        "content_hash": array_hash(torch.from_numpy(images), torch.from_numpy(labels)),
    }
    fields_file = canonical_json(fields).encode()
    _store({f"{key}-images.npy": images_file, f"{key}-labels.npy": labels_file, f"{key}.json": fields_file})
    return ArrayImages(torch.from_numpy(images), torch.from_numpy(labels), content_hash=fields["content_hash"])


def cached_json(key: str, compute: Callable[[], Any]) -> Any:
    """Compute a JSON value once and read it from then on; a damaged or unwritable cache is a warning, no error."""
    path = cache_folder() / f"{key}.json"
    if os.path.exists(path):
        try:
            return read_sealed(path)
        except StorageError as error:
            logger.warning("cache: %s; computing it again", error)
    value = compute()
    _store({path.name: sealed(value)})
    return value


def _load_images(key: str) -> ArrayImages | None:
    folder = cache_folder()
    try:
        fields = json.loads((folder / f"{key}.json").read_bytes())
        for part in ("images", "labels"):
            path = folder / f"{key}-{part}.npy"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != fields[part]:
                    logger.warning("cache file %s is damaged (its checksum differs): decoding again", path)
                    return None
        # Copy-on-write: torch wants writable memory, and nothing is ever written back.
        images = np.load(folder / f"{key}-images.npy", mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / f"{key}-labels.npy", allow_pickle=False)
        return ArrayImages(torch.from_numpy(images), torch.from_numpy(labels), content_hash=fields["content_hash"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("cache %s in %s cannot be used (%s): decoding again", key, folder, error)
        return None


def _store(files: dict[str, bytes]) -> None:
    """Write files in order, each in two phases; the last one makes the others valid."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    except (OSError, StorageError) as error:
        logger.warning("nothing is cached in %s: %s", folder, error)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
