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

AHEAD = 4
"""Rows that follow each other are announced for so many reads of the same length."""


class RowFile:
    """A memory-mapped file of rows.

    Shuffled rows are copied out of the map. As long as that makes the disk work, the system is told beforehand which
    rows will be wanted: it then reads them at the same time, where page faults would read them one by one (cold, that
    is many times slower: jobs/bench_bank.yaml). Rows that follow each other are one piece, and the next are announced.
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
        shape = (len(ids), self._rows.shape[1])
        if pinned:
            rows = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:
            rows = torch.from_numpy(np.empty(shape, dtype=np.uint8))  # NumPy gets its memory faster than torch
        is_piece = len(ids) > 0 and ids[-1] - ids[0] == len(ids) - 1 and bool((np.diff(ids) == 1).all())
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        if self._reads_disk:
            if is_piece:
                self._announce(int(ids[0]), AHEAD * len(ids))
            else:
                for row in ids.tolist():
                    self._announce(row, 1)
        if is_piece:
            np.copyto(rows.numpy(), self._rows[ids[0] : ids[-1] + 1])
        else:
            self._rows.take(ids, axis=0, out=rows.numpy(), mode="clip")
        self._reads_disk = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock != before
        return rows

    def _announce(self, first: int, num_rows: int) -> None:
        """Let the system begin to read rows, without waiting for them."""
        row_bytes = self._rows.shape[1]
        start, stop = first * row_bytes, min(first + num_rows, len(self._rows)) * row_bytes
        page = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, stop - page)
