"""Copy the shards of a memory bank into one local file that is ordered by image id."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ekgsearch.bank.build import bank_layout, read_shard
from ekgsearch.bank.manifest import BankManifest
from ekgsearch.storage.files import PARTIAL_SUFFIX, file_sha256, sync_folder, write_atomically, write_error
from ekgsearch.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

NUM_READERS = 4
"""Shards fetched at a time; object stores answer one request slowly and several fast."""


def stage(store: ObjectStore, manifest: BankManifest, cache_dir: Path) -> Path:
    """Write all rows into one .npy file (N, row_bytes) of bytes, by image id, and verify it.

    Row-wise reads from an object store are hundreds of times slower than from a local file. One process of a machine
    stages, the others wait for it; a file that was staged before is used again if its checksum still holds.

    Args:
        store: where the shards live.
        manifest: the committed bank.
        cache_dir: local folder; created if missing.

    Returns:
        Path of the staged file.

    Raises:
        StorageError: a damaged or missing shard, or no space.
    """
    path = cache_dir / f"bank-{manifest.sha256[:32]}.npy"
    checksum = path.with_suffix(".sha256")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(cache_dir, error, manifest.spec.num_bytes) from error
    with _locked(path.with_suffix(".lock")):
        if path.exists() and checksum.exists():
            if file_sha256(path) == checksum.read_text(encoding="ascii").strip():
                return path
            logger.warning("%s does not match its checksum; staging it again from %s", path, store.uri)
        _write(store, manifest, path)
        write_atomically(checksum, file_sha256(path).encode())
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock; it vanishes with the process that holds it."""
    with open(path, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(store: ObjectStore, manifest: BankManifest, path: Path) -> None:
    """Fill a partial file from all shards, then give it its name."""
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        rows = _reserve(partial, manifest)
        layout = bank_layout(manifest.spec)
        with ThreadPoolExecutor(NUM_READERS) as readers:
            for start in range(0, len(manifest.shards), NUM_READERS):  # in groups, so that few are held in memory
                shards = manifest.shards[start : start + NUM_READERS]
                blocks = readers.map(lambda shard: read_shard(store, manifest.spec, shard), shards)
                for shard, packed in zip(shards, blocks, strict=True):
                    rows[layout[shard.block].numpy()] = packed.numpy()
        rows.flush()
        del rows
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error, manifest.spec.num_bytes) from error
    finally:
        partial.unlink(missing_ok=True)


def _reserve(path: Path, manifest: BankManifest) -> np.memmap:
    """Create an .npy file whose blocks exist on the disk: a map of a sparse file on a full disk kills the process."""
    spec = manifest.spec
    shape = (spec.num_images, spec.row_format.row_bytes)
    rows: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some network file systems cannot reserve
                raise
    return rows
