"""Rows of fixed length in a local file: shuffled rows fast, whether or not the page cache has them."""

import mmap
import os
import resource
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ekgsearch.errors import StorageError


class RowFile:
    """A memory-mapped file of rows.

    Shuffled rows are copied out of the map. As long as that makes the disk work, the system is told beforehand which
    rows will be wanted: it then reads them at the same time, where page faults would read them one by one (measured: 50
    times slower than told). Rows that follow each other are read as one piece, so that the system reads ahead.
    """

    def __init__(self, path: Path, num_rows: int, row_bytes: int) -> None:
        """Map a file.

        Args:
            path: file of exactly `num_rows * row_bytes` bytes.
            num_rows: rows in the file.
            row_bytes: bytes of a row.

        Raises:
            StorageError: the file is missing or has another size.
        """
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)
            size = os.fstat(self._file).st_size
            if size != num_rows * row_bytes:
                raise StorageError(f"{path}: expected {num_rows} rows of {row_bytes} bytes, found {size} bytes")
            self._map = mmap.mmap(self._file, size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise StorageError(f"cannot map {path}: {error.strerror or error}") from error
        self._map.madvise(mmap.MADV_RANDOM)
        self._rows = np.frombuffer(self._map, dtype=np.uint8).reshape(num_rows, row_bytes)
        self._reads_disk = True

    def gather(self, ids: np.ndarray, *, pinned: bool = False) -> Tensor:
        """Copy rows.

        Args:
            ids: row numbers (B,), int64, within the file.
            pinned: whether the copy lies in memory from which a GPU fetches by itself.

        Returns:
            Bytes (B, row_bytes), uint8.
        """
        rows = torch.empty(len(ids), self._rows.shape[1], dtype=torch.uint8, pin_memory=pinned)
        if len(ids) and ids[-1] - ids[0] == len(ids) - 1 and (np.diff(ids) == 1).all():
            self._read(int(ids[0]) * self._rows.shape[1], rows.numpy().data.cast("B"))
            return rows
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        if self._reads_disk:
            self._announce(ids)
        self._rows.take(ids, axis=0, out=rows.numpy(), mode="clip")
        self._reads_disk = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock != before
        return rows

    def _announce(self, ids: np.ndarray) -> None:
        """Let the system begin to read rows, without waiting for them."""
        row_bytes = self._rows.shape[1]
        for row in ids.tolist():
            start = row * row_bytes
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + row_bytes - page)

    def _read(self, start: int, view: memoryview) -> None:
        read = 0
        while read < len(view):
            count = os.preadv(self._file, [view[read:]], start + read)
            if not count:
                raise StorageError(f"the file of a memory bank ended at byte {start + read}; stage it again")
            read += count
