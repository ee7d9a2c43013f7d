"""A memory bank in a bucket of a real server that fails: nothing dangles, errors are clear, the same call goes on."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bank.conftest import IMAGES, logits_of
from object_storage import FaultProxy, Swift

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.commit import MissingBlock, commit, missing_blocks, read_bank
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.shards import find_column, read_shard, write_shard
from ekgsearch.errors import StorageError
from ekgsearch.storage.files import PARTIAL_SUFFIX
from ekgsearch.storage.objects import ObjectStore, open_store

TEACHERS = "abc"
FAULTS = ("503", "reset", "cut", "lost")


@pytest.fixture
def bank_spec(bank_spec: BankSpec) -> BankSpec:
    """Few blocks, since a request to Swift takes some hundredths of a second."""
    return replace(bank_spec, batches_per_block=7)


def build_missing(store: ObjectStore, spec: BankSpec) -> list[MissingBlock]:
    """Do what a run does: find out what is missing, build it, commit. Returns what was built."""
    missing = missing_blocks(store, spec, verify=True)
    for lacking in missing:
        logits = logits_of(bank_layout(spec)[lacking.block])
        for position in lacking.columns:
            write_shard(
                store, spec.columns[position], lacking.block, logits[:, :, TEACHERS.index(spec.teachers[position])]
            )
    commit(store, spec)
    return missing


def every_column(blocks: Iterable[int]) -> list[MissingBlock]:
    return [MissingBlock(block, (0, 1, 2)) for block in blocks]


def assert_nothing_dangles(store: ObjectStore, spec: BankSpec) -> None:
    """A manifest names whole columns, and that of a column whole shards; without one there is no bank."""
    if store.exists(spec.manifest_key):
        read_bank(store, spec)
    for column in spec.columns:
        manifest = find_column(store, column)
        for shard in manifest.shards if manifest else ():
            read_shard(store, column, shard)


def assert_whole(store: ObjectStore, spec: BankSpec, folder: Path) -> None:
    ids = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(2))
    found = MemoryBank.open(store, spec, cache_dir=folder).read(ids)
    assert torch.equal(found.logits, logits_of(ids))
    columns = read_bank(store, spec).columns
    names = {shard.key for column in columns for shard in column.shards}
    names |= {column.manifest_key for column in spec.columns} | {spec.manifest_key}
    assert set(store.list()) == names, "objects that nothing names"


def test_a_bank_in_a_bucket_outlives_passing_faults(s3_server: FaultProxy, bank_spec: BankSpec, tmp_path: Path) -> None:
    store = open_store(s3_server.store_uri)
    s3_server.faults = ["", "503", "reset", "", "lost", "503"]
    assert build_missing(store, bank_spec) == every_column(range(bank_spec.num_blocks))
    assert not [key for key in s3_server.raw_keys() if key.endswith(PARTIAL_SUFFIX)]
    s3_server.faults = ["503", "", "cut", "reset", "", "stall", "cut"]
    assert_whole(store, bank_spec, tmp_path)
    assert s3_server.faults == []
    assert build_missing(store, bank_spec) == []


@pytest.mark.parametrize("num_requests", [0, 3])
def test_a_server_killed_while_a_bank_is_built_loses_nothing_that_was_stored(
    own_swift: Swift, bank_spec: BankSpec, tmp_path: Path, num_requests: int
) -> None:
    proxy = FaultProxy(own_swift.port, "bucket")
    store = open_store(proxy.store_uri)
    proxy.faults = [*[""] * (len(TEACHERS) + num_requests), own_swift.kill]  # each column is listed first
    store._num_attempts = 1  # type: ignore[attr-defined]  # the pauses of the others are tested with the store
    with pytest.raises(StorageError, match=r"cannot \w+ .*after 1 attempts"):
        build_missing(store, bank_spec)
    own_swift.start()
    direct = open_store(proxy.direct_uri)
    assert not direct.exists(bank_spec.manifest_key)
    missing = missing_blocks(direct, bank_spec)
    stored = bank_spec.num_blocks * len(TEACHERS) - sum(len(lacking.columns) for lacking in missing)
    assert abs(stored - num_requests) <= 1
    assert build_missing(direct, bank_spec) == missing
    assert_whole(direct, bank_spec, tmp_path)
    proxy.stop()


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 41), marks=pytest.mark.slow)])
def test_random_faults_leave_nothing_dangling(
    s3_server: FaultProxy, bank_spec: BankSpec, tmp_path: Path, seeds: range
) -> None:
    store, direct = open_store(s3_server.store_uri), open_store(s3_server.direct_uri)
    store._num_attempts, store._first_delay_seconds = 2, 0.001  # type: ignore[attr-defined]
    num_faults = 0
    for seed in seeds:
        spec = replace(bank_spec, seed=seed)
        random_faults = random.Random(seed)
        for attempt in range(100):
            share = 6 / (10 + attempt)  # fewer and fewer, so that it ends
            s3_server.faults = [
                random_faults.choice(FAULTS) if random_faults.random() < share else "" for _ in range(30)
            ]
            drawn = list(s3_server.faults)
            try:
                build_missing(store, spec)
                is_done = True
            except StorageError:
                is_done = False
            num_faults += sum(fault != "" for fault in drawn[: len(drawn) - len(s3_server.faults)])
            s3_server.faults = []
            assert_nothing_dangles(direct, spec)
            if is_done:
                break
        assert is_done
    assert num_faults >= 5 * len(seeds)


def test_a_store_that_does_not_answer_costs_no_shard(s3_server: FaultProxy, bank_spec: BankSpec) -> None:
    store = open_store(s3_server.store_uri)
    build_missing(store, bank_spec)
    before = store.list()
    store._num_attempts = 1  # type: ignore[attr-defined]
    s3_server.broken = "block-000001"
    with pytest.raises(StorageError, match=r"cannot (read|look up) .*block-000001"):
        build_missing(store, bank_spec)
    s3_server.broken = ""
    assert store.list() == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda data: data[:-3] + bytes([data[-3] ^ 4]) + data[-2:],
    "a missing end": lambda data: data[:-1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_named_and_only_its_block_is_built_again(
    s3_server: FaultProxy, bank_spec: BankSpec, tmp_path: Path, damage: str
) -> None:
    store = open_store(s3_server.store_uri)
    build_missing(store, bank_spec)
    shard = read_bank(store, bank_spec).columns[1].shards[2]
    store.put(shard.key, DAMAGES[damage](store.get(shard.key)))
    with pytest.raises(StorageError, match=f"{shard.key}: expected {shard.bytes} bytes with SHA-256 {shard.sha256}"):
        MemoryBank.open(store, bank_spec, cache_dir=tmp_path / "first").wait()
    assert missing_blocks(store, bank_spec, verify=True) == [MissingBlock(2, (1,))]
    assert [store.exists(place.manifest_key) for place in (bank_spec, *bank_spec.columns)] == [False, True, False, True]
    assert build_missing(store, bank_spec) == [MissingBlock(2, (1,))]
    assert_whole(store, bank_spec, tmp_path / "second")


def test_a_bank_of_another_data_set_or_job_is_told(s3_server: FaultProxy, bank_spec: BankSpec, tmp_path: Path) -> None:
    store = open_store(s3_server.store_uri)
    build_missing(store, bank_spec)
    for other in (replace(bank_spec, dataset_hash="another"), replace(bank_spec, weights_hash="another")):
        with pytest.raises(StorageError, match=r"found none \(the closest of 1 others differs: \w+: expected another"):
            MemoryBank.open(store, other, cache_dir=tmp_path)
        store.put(other.manifest_key, store.get(bank_spec.manifest_key))
        with pytest.raises(StorageError, match=r"is another memory bank: .*expected another, found"):
            MemoryBank.open(store, other, cache_dir=tmp_path)
        store.delete(other.manifest_key)


def test_a_manifest_whose_shard_is_gone_is_not_read(s3_server: FaultProxy, bank_spec: BankSpec, tmp_path: Path) -> None:
    store = open_store(s3_server.store_uri)
    build_missing(store, bank_spec)
    bank = read_bank(store, bank_spec)
    key = bank.columns[2].shards[0].key
    store.delete(key)
    with pytest.raises(StorageError, match=key):
        MemoryBank.open(store, bank_spec, cache_dir=tmp_path).wait()
    assert build_missing(store, bank_spec) == [MissingBlock(0, (2,))]
    assert read_bank(store, bank_spec) == bank
