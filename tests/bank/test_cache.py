"""The local file of a bank: filled once for all processes, in the background, and trusted only after a comparison."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bank.conftest import IMAGES, WatchedStore, logits_of

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.cache import BankCache
from ekgsearch.bank.commit import read_bank
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.errors import StorageError

EVERY = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))


def shard_reads(store: WatchedStore) -> list[str]:
    return [key for key in store.reads if key.endswith(".safetensors")]


def let_fillers_end() -> None:
    """A bank that is gone is still in use as long as its threads fill the file."""
    for thread in threading.enumerate():
        if thread.name.startswith("bank-"):
            thread.join(30)


def assert_whole(bank: MemoryBank) -> None:
    assert torch.equal(bank.read(EVERY).logits, logits_of(EVERY))


def rows_file(folder: Path) -> Path:
    (path,) = folder.glob("*.rows")
    return path


def test_processes_of_a_machine_fetch_every_shard_once(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    banks = [MemoryBank.open(filled, bank_spec, cache_dir=tmp_path) for _ in range(4)]
    for bank in banks:
        assert_whole(bank)
    assert sorted(shard_reads(filled)) == sorted(set(shard_reads(filled)))
    assert len(shard_reads(filled)) == bank_spec.num_blocks * 3


def test_a_batch_is_read_before_the_bank_is_whole(filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path) -> None:
    shards = read_bank(filled, bank_spec).columns[0].shards
    filled.gates = {shard.key: threading.Event() for shard in shards}
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path)
    while len(shard_reads(filled)) < 4:  # its readers wait at the first four gates
        time.sleep(0.01)
    found = []
    reader = threading.Thread(target=lambda: found.append(bank.read(bank_layout(bank_spec)[9])))
    reader.start()
    filled.gates[shards[9].key].set()
    while not bank._cache.blocks_wanted()[9]:
        time.sleep(0.01)
    filled.gates[shards[0].key].set()  # one reader is free, and the block that is waited for comes next
    reader.join(30)
    assert torch.equal(found[0].logits, logits_of(bank_layout(bank_spec)[9]))
    assert bank._cache.blocks_there().sum() == 2
    for gate in filled.gates.values():
        gate.set()
    assert_whole(bank)


def test_a_sound_file_is_used_again_and_a_damaged_block_is_fetched(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    assert_whole(MemoryBank.open(filled, bank_spec, cache_dir=tmp_path))
    let_fillers_end()
    filled.reads.clear()
    assert_whole(MemoryBank.open(filled, bank_spec, cache_dir=tmp_path))
    let_fillers_end()
    assert shard_reads(filled) == []
    with open(rows_file(tmp_path), "r+b") as file:
        file.seek((5 * 16 + 3) * bank_spec.row_format.row_bytes)
        file.write(b"\xff")
    assert_whole(MemoryBank.open(filled, bank_spec, cache_dir=tmp_path))
    assert shard_reads(filled) == [column.shards[5].key for column in read_bank(filled, bank_spec).columns]


@pytest.mark.parametrize("suffix", [".rows", ".blocks"])
@pytest.mark.parametrize("size", [0, 100])
def test_files_that_were_cut_short_are_filled_anew(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path, suffix: str, size: int
) -> None:
    assert_whole(MemoryBank.open(filled, bank_spec, cache_dir=tmp_path))
    let_fillers_end()
    os.truncate(rows_file(tmp_path).with_suffix(suffix), size)
    assert_whole(MemoryBank.open(filled, bank_spec, cache_dir=tmp_path))


def test_a_block_counts_only_once_it_was_compared(filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path) -> None:
    manifest = read_bank(filled, bank_spec).manifest
    cache = BankCache(manifest, tmp_path)
    packed = np.zeros((16, bank_spec.row_format.row_bytes), dtype=np.uint8)
    assert not cache.holds(0)
    cache.write(0, packed)
    assert cache.holds(0)
    assert not cache.blocks_there().any()
    cache.publish(0)
    joined = BankCache(manifest, tmp_path)
    assert joined.blocks_there().tolist() == cache.blocks_there().tolist() == [True] + [False] * 12
    del cache, joined
    assert not BankCache(manifest, tmp_path).blocks_there().any(), "nobody used it, so nothing counts yet"


def test_a_cache_stays_in_use_when_whoever_opened_it_first_leaves(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    manifest = read_bank(filled, bank_spec).manifest
    first = BankCache(manifest, tmp_path)
    first.write(0, np.zeros((16, bank_spec.row_format.row_bytes), dtype=np.uint8))
    first.publish(0)
    second = BankCache(manifest, tmp_path)
    del first
    third = BankCache(manifest, tmp_path)
    assert third.blocks_there()[0], "the second still reads this block"
    del second, third


KILLED = """
import sys, threading, time
from pathlib import Path
from bank.conftest import WatchedStore
from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.commit import read_bank
from ekgsearch.bank.manifest import BankManifest
store = WatchedStore(Path(sys.argv[1]))
spec = BankManifest.from_bytes(store.get(sys.argv[3]), "here").spec
store.gates = {shard.key: threading.Event() for shard in read_bank(store, spec).columns[1].shards[6:]}
bank = MemoryBank.open(store, spec, cache_dir=Path(sys.argv[2]))
while bank._cache.blocks_there().sum() < 6:
    time.sleep(0.01)
print("half", flush=True)
time.sleep(60)
"""


def test_a_process_that_waits_goes_on_where_a_killed_one_stopped(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    filler = subprocess.Popen(
        [sys.executable, "-c", KILLED, filled.uri, str(tmp_path), bank_spec.manifest_key],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert filler.stdout is not None
    assert filler.stdout.readline() == "half\n"
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path)
    early = torch.cat(bank_layout(bank_spec)[:6])
    assert torch.equal(bank.read(early).logits, logits_of(early)), "what is there is read while another process fills"
    assert shard_reads(filled) == []
    threading.Timer(0.3, lambda: os.kill(filler.pid, signal.SIGKILL)).start()
    assert_whole(bank)
    assert len(shard_reads(filled)) == (bank_spec.num_blocks - 6) * 3
    filler.wait()


def test_a_missing_shard_is_an_error_of_whoever_waits(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    key = read_bank(filled, bank_spec).columns[2].shards[7].key
    filled.delete(key)
    for _ in range(2):
        bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path)
        with pytest.raises(StorageError, match=key):
            bank.wait()
        del bank
        let_fillers_end()


def test_no_room_for_the_file_is_said_at_once(filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"file size limit is reached; {bank_spec.num_bytes} bytes are needed"):
            MemoryBank.open(filled, bank_spec, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*file"):
        MemoryBank.open(filled, bank_spec, cache_dir=tmp_path / "file")


def test_a_cache_that_could_not_be_opened_is_opened_later(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    manifest, held = read_bank(filled, bank_spec).manifest, len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(StorageError, match="no space is left") as raised:
            BankCache(manifest, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == held, "descriptors stay open"
    opened = []
    opener = threading.Thread(target=lambda: opened.append(BankCache(manifest, tmp_path)), daemon=True)
    opener.start()
    opener.join(30)
    assert len(opened) == 1, f"the lock is still held after: {raised.value}"


@pytest.mark.gpu
def test_a_resident_bank_reads_the_same_without_its_file(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path, device="cuda", resident=True)
    assert bank.is_resident
    os.truncate(rows_file(tmp_path), 0)
    assert torch.equal(bank.read(EVERY).logits.cpu(), logits_of(EVERY))
    with pytest.raises(StorageError, match="images that it covers"):
        bank.read(torch.tensor([IMAGES]))


def test_an_error_of_any_kind_reaches_whoever_waits(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of a library")

    monkeypatch.setattr("ekgsearch.bank.fill.read_shard", fail)
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path)
    with pytest.raises(StorageError, match=r"rows: expected the shards of .*, found ZeroDivisionError: of a") as raised:
        bank.wait()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_processes_on_cpus_share_the_file_and_copy_nothing(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path, resident=True)
    assert not bank.is_resident
    assert sum("stays in its file, which all processes share" in message for message in caplog.messages) == 1
    assert_whole(bank)


def test_a_bank_too_large_for_the_device_stays_in_its_file(
    filled: WatchedStore,
    bank_spec: BankSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * bank_spec.num_bytes - 1, 0))
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path, device="cuda", resident=True)
    assert not bank.is_resident
    assert f"takes {bank_spec.num_bytes} bytes, cuda has" in caplog.text


@pytest.mark.gpu
def test_rows_of_a_gpu_are_those_of_the_file(filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path) -> None:
    for is_resident in (False, True):
        bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path, device="cuda", resident=is_resident)
        found = bank.read(EVERY).logits
        assert bank.is_resident is is_resident
        assert found.device.type == "cuda"
        assert torch.equal(found.cpu(), logits_of(EVERY))


def test_the_file_holds_rows_in_the_order_of_the_bank(
    filled: WatchedStore, bank_spec: BankSpec, tmp_path: Path
) -> None:
    bank = MemoryBank.open(filled, bank_spec, cache_dir=tmp_path)
    bank.wait()
    rows = np.fromfile(rows_file(tmp_path), dtype=np.float32).reshape(IMAGES, 3, 6)
    assert np.array_equal(rows.transpose(0, 2, 1), logits_of(bank.order).numpy())
    assert torch.equal(bank.read(bank.order).logits, logits_of(bank.order))
