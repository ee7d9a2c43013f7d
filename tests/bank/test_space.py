"""Too little space for a bank is noticed before the work, and what is there already is not asked for again."""

import os
from pathlib import Path

import pytest

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.commit import find_all
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.space import check_space
from ekgsearch.errors import StorageError
from ekgsearch.storage.local_store import LocalStore

BLOCK = 16 * 6 * 4
"""Bytes of one block of a column: images, classes, float32."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What every disk has free: its one item."""
    found = [0]
    for module in ("ekgsearch.bank.space", "ekgsearch.storage.local_store"):
        monkeypatch.setattr(f"{module}.free_bytes", lambda folder: found[0])
    return found


def assert_needed(store: LocalStore, spec: BankSpec, cache: Path | None, free: list[int], num_bytes: int) -> None:
    free[0] = num_bytes
    check_space(store, spec, cache)
    if num_bytes:
        free[0] -= 1
        with pytest.raises(
            StorageError, match=f"expected {num_bytes} free bytes for the memory bank .*found {free[0]};"
        ):
            check_space(store, spec, cache)


def test_a_new_bank_takes_its_bytes_twice_on_one_disk(bank_spec: BankSpec, tmp_path: Path, free: list[int]) -> None:
    store = LocalStore(tmp_path / "store")
    assert_needed(store, bank_spec, tmp_path / "not" / "yet", free, 2 * bank_spec.num_bytes)
    assert_needed(store, bank_spec, None, free, bank_spec.num_bytes)


def test_stored_blocks_and_a_local_copy_are_not_asked_for_again(
    filled: LocalStore, bank_spec: BankSpec, tmp_path: Path, free: list[int]
) -> None:
    cache, copy = tmp_path / "cache", bank_spec.num_bytes
    assert_needed(filled, bank_spec, cache, free, copy)
    MemoryBank.open(filled, bank_spec, cache_dir=cache).wait()
    assert_needed(filled, bank_spec, cache, free, 0)
    found = find_all(filled, bank_spec)
    for position, block in ((0, 2), (2, 5)):
        filled.delete(found[position][block].key)
    assert_needed(filled, bank_spec, None, free, 2 * BLOCK)
    assert_needed(filled, bank_spec, tmp_path / "elsewhere", free, 2 * BLOCK + copy)


def test_two_disks_are_compared_each_with_its_own_part(
    bank_spec: BankSpec, tmp_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ekgsearch.bank.space._disk", lambda folder: folder.name)
    store, cache = LocalStore(tmp_path / "store"), tmp_path / "cache"
    assert_needed(store, bank_spec, cache, free, bank_spec.num_bytes)
    monkeypatch.setattr(LocalStore, "free_bytes", lambda store: None)  # as a bucket
    assert_needed(store, bank_spec, cache, free, bank_spec.num_bytes)
    with pytest.raises(StorageError, match=str(cache)):
        check_space(store, bank_spec, cache)
    assert os.listdir(tmp_path) == ["store"]
