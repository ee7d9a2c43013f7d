"""The local file of a memory bank, which all processes of a machine share, and which of its blocks are there."""

import errno
import fcntl
import hashlib
import os
import platform
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ekgsearch.bank.layout import block_rows
from ekgsearch.bank.manifest import BankManifest
from ekgsearch.errors import StorageError
from ekgsearch.storage.files import write_error

_RECORD = np.dtype([("is_there", np.uint8), ("is_wanted", np.uint8), ("sha256", np.uint8, 32)])


def cache_path(manifest: BankManifest, folder: Path) -> Path:
    """File of this machine for the rows of a bank."""
    return folder / f"bank-{manifest.sha256[:32]}-{platform.node()}.rows"


class BankCache:
    """All rows in one file, block after block, and beside it one record per block: there, wanted, checksum of its rows.

    Whoever opens the cache while no other process uses it counts no block as there, until its rows have been compared
    with their checksum: a crash, a full disk or a bad one may have come between. After that a block that is there
    stays, and processes that join trust it. Locks vanish with the process that holds them.

    Attributes:
        path: the file of rows, in the order of `bank_layout`: a block is written and compared as one piece.
    """

    def __init__(self, manifest: BankManifest, folder: Path) -> None:
        """Open or make the files.

        Args:
            manifest: the committed bank.
            folder: local folder; made if missing. The name of the machine is part of the names of the files, so that
                machines that share the folder do not share them.

        Raises:
            StorageError: the folder cannot be written or lacks the space.
        """
        spec = manifest.spec
        self._num_blocks = spec.num_blocks
        self._sizes = [block_rows(spec, block) * spec.row_format.row_bytes for block in (0, spec.num_blocks - 1)]
        self.path = cache_path(manifest, folder)
        descriptors: list[int] = []
        close = weakref.finalize(self, _close, descriptors)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in (".users", ".filler", ".blocks", self.path.suffix):
                descriptors.append(_opened(self.path.with_suffix(suffix)))
            self._users, self._filler, self._records, self._rows = descriptors
            is_alone = _lock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_alone:
                self._reset(spec.num_bytes)
            _lock(self._users, fcntl.LOCK_SH)
        except OSError as error:
            close()  # else the lock would stay for as long as somebody looks at the error
            raise write_error(self.path, error, spec.num_bytes) from error

    def become_filler(self) -> bool:
        """Take the right to fill the cache, if no process of this machine has it."""
        return _lock(self._filler, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def retire(self) -> None:
        """Give the right to fill the cache back."""
        _lock(self._filler, fcntl.LOCK_UN)

    def blocks_there(self) -> np.ndarray:
        """Whether each block is there: (blocks,), bool."""
        return np.asarray(self._read_records()["is_there"] != 0)

    def blocks_wanted(self) -> np.ndarray:
        """Whether some process waits for each block: (blocks,), bool."""
        return np.asarray(self._read_records()["is_wanted"] != 0)

    def want(self, blocks: np.ndarray) -> None:
        """Ask for blocks before others."""
        for block in blocks.tolist():
            self._write_record(block, "is_wanted", b"\1")

    def holds(self, block: int) -> bool:
        """Whether a block's rows agree with the checksum that was recorded when they were written."""
        recorded = self._read_records()["sha256"][block].tobytes()
        if not any(recorded):
            return False
        size, start = self._sizes[block == self._num_blocks - 1], block * self._sizes[0]
        data = bytearray(size)
        read = 0
        while read < size and (count := os.preadv(self._rows, [memoryview(data)[read:]], start + read)):
            read += count
        return bool(hashlib.sha256(data).digest() == recorded)

    def write(self, block: int, packed: np.ndarray) -> None:
        """Write the rows of a block and record their checksum; `publish` makes them count.

        Args:
            block: block index.
            packed: rows (rows, row_bytes), uint8, in the order of the layout.

        Raises:
            StorageError: the disk refuses.
        """
        rows = packed.data.cast("B")
        self._write_record(block, "sha256", bytes(32))
        try:
            _write_at(self._rows, rows, block * self._sizes[0])
        except OSError as error:
            raise write_error(self.path, error, rows.nbytes) from error
        self._write_record(block, "sha256", hashlib.sha256(rows).digest())

    def publish(self, block: int) -> None:
        """Let all processes of the machine read a block."""
        self._write_record(block, "is_there", b"\1")

    def _reset(self, num_bytes: int) -> None:
        """Make the files as long as they must be, and count no block as there."""
        os.ftruncate(self._rows, num_bytes)
        try:
            os.posix_fallocate(self._rows, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some network file systems cannot reserve
                raise
        os.ftruncate(self._records, self._num_blocks * _RECORD.itemsize)
        records = self._read_records()
        records["is_there"], records["is_wanted"] = 0, 0
        _write_at(self._records, memoryview(records.tobytes()), 0)

    def _read_records(self) -> np.ndarray:
        size = self._num_blocks * _RECORD.itemsize
        data = os.pread(self._records, size, 0)
        if len(data) != size:
            raise StorageError(
                f"{self.path.with_suffix('.blocks')}: expected {size} bytes, found {len(data)}; remove it"
            )
        return np.frombuffer(data, dtype=_RECORD).copy()

    def _write_record(self, block: int, name: str, value: bytes) -> None:
        fields = _RECORD.fields
        assert fields is not None
        os.pwrite(self._records, value, block * _RECORD.itemsize + fields[name][1])


def _write_at(descriptor: int, view: memoryview, start: int) -> None:
    written = 0
    while written < view.nbytes:
        written += os.pwrite(descriptor, view[written:], start + written)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    return True
