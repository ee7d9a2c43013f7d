"""A bank is completed on stores whose lists lag behind, and on file systems without hard links."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_bank import block, build, make_spec

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.commit import MissingBlock, commit, find_all, missing_blocks, read_bank
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.shards import write_shard
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
    bank = commit(store, spec)
    store.delete(bank.columns[2].shards[1].key)
    assert missing_blocks(store, spec, verify=True) == [MissingBlock(1, (2,))]
    with pytest.raises(StorageError, match="found none; build it first"):
        read_bank(store, replace(spec, seed=2))


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
    found = find_all(store, spec)
    store.late = {found[0][1].key: 3, found[2][3].key: 2}
    bank = commit(store, spec, patience_seconds=0.2)
    assert [column.shards for column in bank.columns] == [
        tuple(shards[block] for block in range(4)) for shards in found
    ]
    other = replace(spec, seed=2)
    build(store, other)
    store.late = {find_all(store, other)[1][1].key: 1000}
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"expected 4 blocks .*, 1 are missing \(first \[1\]\)"):
        commit(store, other, patience_seconds=0.2)
    assert 0.2 <= time.monotonic() - start < 5


def test_a_manifest_stays_where_the_list_does_not_show_its_blocks_yet(spec: BankSpec, tmp_path: Path) -> None:
    spec = replace(spec, dtype="float32")
    store = LateStore(tmp_path / "store")
    build(store, spec)
    first = commit(store, spec)
    write_shard(store, spec.columns[0], 1, block(spec, 1).logits[:, :, 0] + 1e-6)
    store.late = {first.columns[0].shards[1].key: 1000}
    assert commit(store, spec) == first


def test_a_bank_is_completed_in_a_folder_without_hard_links(
    spec: BankSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path / "store"))
    build(store, spec)
    assert commit(store, spec) == commit(store, spec) == read_bank(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(bank.read(bank_layout(spec)[2]).logits, block(spec, 2).logits, rtol=2e-3, atol=2e-3)


def test_the_first_manifest_stays_while_its_blocks_are_there(store: ObjectStore, spec: BankSpec) -> None:
    spec = replace(spec, dtype="float32")
    build(store, spec)
    first = commit(store, spec)
    column, values = spec.columns[0], block(spec, 1).logits[:, :, 0]
    keys = [first.columns[0].shards[1].key]
    while min(keys) == keys[0]:  # a machine that rounds differently computes the same block
        keys.append(write_shard(store, column, 1, values + 1e-6 * len(keys)).key)
    assert commit(store, spec) == read_bank(store, spec) == first
    assert missing_blocks(store, spec, verify=True) == []
    assert find_all(store, spec)[0][1].key == keys[0], "the manifest is the truth"
    store.delete(keys[0])
    assert find_all(store, spec)[0][1].key == min(keys)
    second = commit(store, spec)
    assert [shard.key for shard in second.columns[0].shards] == [
        min(keys) if shard.block == 1 else shard.key for shard in first.columns[0].shards
    ]
    assert second.columns[1:] == first.columns[1:]
    assert read_bank(store, spec) == second
    store.put(column.manifest_key, b"{")
    assert commit(store, spec) == read_bank(store, spec) == second
