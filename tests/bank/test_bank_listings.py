"""A bank is completed on stores whose lists lag behind, and on file systems without hard links."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_bank import block, build, make_spec

from ekgsearch.bank.bank import MemoryBank, read_manifest
from ekgsearch.bank.build import (
    bank_layout,
    commit,
    find_shards,
    manifest_key,
    missing_blocks,
    write_block,
)
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.errors import StorageError
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.objects import ObjectStore, open_store


@pytest.fixture
def spec() -> BankSpec:
    return make_spec()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


class LaggingStore(LocalStore):
    """A folder whose list of objects still holds what was removed, as Swift's may for a while."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.removed: dict[str, int] = {}

    def delete(self, key: str) -> None:
        if self.exists(key):
            self.removed[key] = self.size(key)
        super().delete(key)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        ghosts = {key: size for key, size in self.removed.items() if key.startswith(prefix)}
        return dict(sorted((ghosts | super().sizes(prefix)).items()))


def test_objects_that_a_list_still_names_are_not_taken_for_there(spec: BankSpec, tmp_path: Path) -> None:
    store = LaggingStore(tmp_path / "store")
    build(store, spec)
    manifest = commit(store, spec)
    store.delete(manifest.shards[1].key)
    assert missing_blocks(store, spec, verify=True) == [1]
    with pytest.raises(StorageError, match="found none; build it first"):
        read_manifest(store, replace(spec, seed=2))


class LateStore(LocalStore):
    """A folder whose list of objects shows what was stored only when it is asked for the n-th time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.late: dict[str, int] = {}

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = super().sizes(prefix)
        for key in found.keys() & self.late.keys():
            self.late[key] -= 1
        return {key: size for key, size in found.items() if self.late.get(key, 0) <= 0}


def test_a_list_that_lags_behind_what_was_stored_is_asked_for_again(spec: BankSpec, tmp_path: Path) -> None:
    store = LateStore(tmp_path / "store")
    build(store, spec)
    shards = find_shards(store, spec)
    store.late = {shards[1].key: 3, shards[3].key: 2}
    assert commit(store, spec, patience_seconds=0.2).shards == tuple(shards[block] for block in range(4))
    store.late = {shards[1].key: 1000}
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"expected 4 blocks, 1 are missing \(first \[1\]\)"):
        commit(store, spec, patience_seconds=0.2)
    assert 0.2 <= time.monotonic() - start < 5


def test_a_manifest_stays_where_the_list_does_not_show_its_blocks_yet(spec: BankSpec, tmp_path: Path) -> None:
    spec = replace(spec, dtype="float32")
    store = LateStore(tmp_path / "store")
    build(store, spec)
    first = commit(store, spec)
    write_block(store, spec, 1, BankRows(block(spec, 1).logits + 1e-6))
    store.late = {first.shards[1].key: 1000}
    assert commit(store, spec) == first


def test_a_bank_is_completed_in_a_folder_without_hard_links(
    spec: BankSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path / "store"))
    build(store, spec)
    assert commit(store, spec) == commit(store, spec) == read_manifest(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(bank.read(bank_layout(spec)[2]).logits, block(spec, 2).logits, rtol=2e-3, atol=2e-3)


def test_the_first_manifest_stays_while_its_blocks_are_there(store: ObjectStore, spec: BankSpec) -> None:
    spec = replace(spec, dtype="float32")
    build(store, spec)
    first = commit(store, spec)
    other = block(spec, 1)
    made = write_block(store, spec, 1, BankRows(other.logits + 1e-6))  # another kind of device computes the same block
    assert made.key != first.shards[1].key
    assert commit(store, spec) == read_manifest(store, spec) == first
    store.delete(first.shards[1].key)
    second = commit(store, spec)
    assert [shard.key for shard in second.shards] == [
        made.key if shard.block == 1 else shard.key for shard in first.shards
    ]
    assert read_manifest(store, spec) == second
    store.put(manifest_key(spec), b"{")
    assert commit(store, spec) == read_manifest(store, spec) == second
