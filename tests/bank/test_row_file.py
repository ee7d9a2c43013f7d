"""Rows come out of a file as they lie in it, in whatever order they are asked for."""

import os
from pathlib import Path

import numpy as np
import pytest

from ekgsearch.bank.row_file import RowFile
from ekgsearch.errors import StorageError

ROWS, ROW_BYTES = 500, 3000


@pytest.fixture
def expected() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (ROWS, ROW_BYTES), dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path, expected: np.ndarray) -> Path:
    path = tmp_path / "rows"
    path.write_bytes(expected.tobytes())
    return path


def drop_from_page_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


ORDERS = {
    "none": [],
    "one": [ROWS - 1],
    "all": list(range(ROWS)),
    "piece": list(range(100, 140)),
    "backwards": list(range(140, 100, -1)),
    "repeated": [3, 3, 4, 4, 5],
    "repeated and as long as a piece": [3, 3, 5],
    "shuffled": np.random.default_rng(2).permutation(ROWS)[:256].tolist(),
}


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_those_of_the_file(path: Path, expected: np.ndarray, order: str, is_cold: bool) -> None:
    rows = RowFile(path, ROWS, ROW_BYTES)
    ids = np.array(ORDERS[order], dtype=np.int64)
    for _ in range(2):
        if is_cold:
            drop_from_page_cache(path)
        found = rows.gather(ids)
        assert found.shape == (len(ids), ROW_BYTES)
        assert np.array_equal(found.numpy(), expected[ids])


def test_a_copy_does_not_change_with_the_next(path: Path, expected: np.ndarray) -> None:
    rows = RowFile(path, ROWS, ROW_BYTES)
    first = rows.gather(np.array([1, 7]))
    rows.gather(np.array([2, 9]))
    assert np.array_equal(first.numpy(), expected[[1, 7]])


def test_a_file_of_another_size_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected 501 rows of 3000 bytes, found 1500000 bytes"):
        RowFile(path, ROWS + 1, ROW_BYTES)
    with pytest.raises(StorageError, match=r"cannot map .*none"):
        RowFile(tmp_path / "none", ROWS, ROW_BYTES)
