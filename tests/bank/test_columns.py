"""Banks share the columns of their teachers: what one has stored another does not compute, and reads the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from object_storage import FaultProxy
from small_bank import IMAGES, PIXELS, SUBNETWORKS, block, build_missing, make_spec

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.commit import MissingBlock, commit, missing_blocks, read_bank
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankDtype
from ekgsearch.errors import JobError
from ekgsearch.storage.objects import ObjectStore, open_store

A, B, C = (teacher.sha256 for teacher in SUBNETWORKS)
BATCHES = [2, 2, 2, 1]
"""Batches of each block."""


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    server: FaultProxy = request.getfixturevalue("s3_server")
    return open_store(server.store_uri)


@pytest.fixture(params=["float16", "float32", "int8"])
def dtype(request: pytest.FixtureRequest) -> BankDtype:
    return request.param


@pytest.fixture(params=[0, PIXELS], ids=["logits", "embeddings"])
def spec(request: pytest.FixtureRequest, dtype: BankDtype) -> BankSpec:
    return replace(make_spec(), dtype=dtype, embeddings=request.param)


def passes(teachers: int) -> list[tuple[int, int]]:
    """What `build_missing` returns where so many teachers lack every block."""
    return [(index, teachers * batches) for index, batches in enumerate(BATCHES)]


def copied(store: ObjectStore, spec: BankSpec, folder: Path) -> bytes:
    """The local copy of a complete bank."""
    bank = MemoryBank.open(store, spec, cache_dir=folder)
    bank.wait()
    (path,) = folder.glob("*.rows")
    return path.read_bytes()


def naive_rows(spec: BankSpec) -> bytes:
    """What the local copy must be: image by image, the parts one after the other, teacher by teacher."""
    rows = bytearray()
    for index in range(spec.num_blocks):
        made = block(spec, index)
        for logits, embeddings in zip(
            made.logits.numpy(),
            made.embeddings.numpy() if made.embeddings is not None else [None] * len(made),
            strict=True,
        ):
            parts = [outputs for outputs in (logits, embeddings) if outputs is not None]
            row = bytearray()
            if spec.dtype == "int8":
                scales = [scale_and_zero(outputs) for outputs in parts]
                for scale, zero in scales:
                    row += np.stack([scale, zero], axis=1).tobytes()
                for outputs, (scale, zero) in zip(parts, scales, strict=True):
                    row += (np.round(outputs / np.where(scale > 0, scale, 1)) + zero).astype(np.int8).T.tobytes()
            else:
                for outputs in parts:
                    row += outputs.astype(spec.dtype).T.tobytes()
            rows += row + bytes(-len(row) % 4)
    return bytes(rows)


def scale_and_zero(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each teacher's outputs (values, K): 0 is among the 255 steps from -127 to 127."""
    low, high = np.minimum(outputs.min(axis=0), 0), np.maximum(outputs.max(axis=0), 0)
    scale = (high - low) / np.float32(254)
    return scale, np.round(np.float32(-127) - low / np.where(scale > 0, scale, np.float32(1)))


def test_banks_with_teachers_in_common_share_their_columns(store: ObjectStore, spec: BankSpec, tmp_path: Path) -> None:
    first, second = replace(spec, teachers=(A, B)), replace(spec, teachers=(C, B))
    assert build_missing(store, first) == passes(teachers=2)
    bank = commit(store, first)
    objects = {key: store.get(key) for key in store.list()}
    assert build_missing(store, second) == passes(teachers=1), "only the teacher that the first bank has not"
    other = commit(store, second)
    assert other.columns[1::2] == bank.columns[1::2]
    assert build_missing(store, first) == build_missing(store, second) == []
    assert {key: store.get(key) for key in objects} == objects
    for place in (first, second):
        assert copied(store, place, tmp_path / place.sha256) == naive_rows(place)


def test_another_order_or_number_of_teachers_computes_nothing(
    store: ObjectStore, spec: BankSpec, tmp_path: Path
) -> None:
    assert build_missing(store, spec) == passes(teachers=3)
    commit(store, spec)
    num_blocks = sum(key.endswith(".safetensors") for key in store.list())
    for teachers in ((C, B, A), (B,), (B, C)):
        other = replace(spec, teachers=teachers)
        assert missing_blocks(store, other, verify=True) == []
        assert commit(store, other) == read_bank(store, other)
        bank = MemoryBank.open(store, other, cache_dir=tmp_path / other.sha256)
        whole = MemoryBank.open(store, spec, cache_dir=tmp_path / "whole")
        found, expected, ids = bank.read(bank.order), whole.read(bank.order), [spec.teachers.index(t) for t in teachers]
        assert torch.equal(found.logits, expected.logits[:, :, ids])
        if spec.embeddings:
            assert found.embeddings is not None
            assert expected.embeddings is not None
            assert torch.equal(found.embeddings, expected.embeddings[:, :, ids])
    assert sum(key.endswith(".safetensors") for key in store.list()) == num_blocks


def test_embeddings_that_are_added_later_leave_the_logits(store: ObjectStore, dtype: BankDtype, tmp_path: Path) -> None:
    spec = replace(make_spec(), dtype=dtype)
    wide = replace(spec, embeddings=PIXELS)
    assert build_missing(store, spec) == passes(teachers=3)
    commit(store, spec)
    before = {key: store.get(key) for key in store.list()}
    assert missing_blocks(store, wide) == [MissingBlock(index, (3, 4, 5)) for index in range(4)]
    assert build_missing(store, wide) == passes(teachers=3)
    commit(store, wide)
    assert {key: store.get(key) for key in before} == before
    assert {key.split("/")[1] for key in store.list("column/")} == {
        column.prefix.split("/")[1] for column in wide.columns
    }
    assert copied(store, wide, tmp_path) == naive_rows(wide)


def test_a_bank_built_at_once_or_in_parts_is_the_same(spec: BankSpec, tmp_path: Path) -> None:
    whole, parts = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "parts"))
    build_missing(whole, spec)
    for teachers in ((B,), (C, A)):
        build_missing(parts, replace(spec, teachers=teachers, embeddings=0))
    for lost in [key for key in parts.list() if "/block-000002-" in key][:2]:
        parts.delete(lost)
    build_missing(parts, replace(spec, teachers=(A, C)))
    build_missing(parts, spec)
    banks = [commit(store, spec) for store in (whole, parts)]
    assert banks[0] == banks[1], "the journal names the bank, whatever was stored before"
    assert whole.list() == parts.list()
    copies = [copied(store, spec, tmp_path / name) for name, store in (("a", whole), ("b", parts))]
    assert copies[0] == copies[1] == naive_rows(spec)


def test_teachers_miss_different_blocks(store: ObjectStore, spec: BankSpec) -> None:
    build_missing(store, spec)
    bank = commit(store, spec)
    store.delete(bank.columns[0].shards[1].key)
    data = store.get(bank.columns[-1].shards[1].key)
    store.put(bank.columns[-1].shards[1].key, data[:-1] + bytes([data[-1] ^ 1]))
    store.put(bank.columns[-1].shards[3].key, b"")
    last = len(spec.columns) - 1
    assert missing_blocks(store, spec, verify=True) == [MissingBlock(1, (0, last)), MissingBlock(3, (last,))]
    assert build_missing(store, spec) == [(1, 2 * BATCHES[1]), (3, BATCHES[3])]
    assert commit(store, spec) == bank


def test_banks_in_a_bucket_share_their_columns(s3_server: FaultProxy, tmp_path: Path) -> None:
    """The contract in short: a request to Swift takes some hundredths of a second."""
    store, spec = open_store(s3_server.store_uri), replace(make_spec(), dtype="int8", batches_per_block=4)
    first, second = replace(spec, teachers=(A, B)), replace(spec, teachers=(C, B), embeddings=PIXELS)
    assert build_missing(store, first) == [(0, 2 * 4), (1, 2 * 3)]
    bank = commit(store, first)
    assert missing_blocks(store, second) == [MissingBlock(block, (0, 2, 3)) for block in (0, 1)]
    build_missing(store, second)
    assert commit(store, second).columns[1] == bank.columns[1]
    assert read_bank(store, first) == bank
    assert copied(store, second, tmp_path) == naive_rows(second)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_hash": "e" * 64},
        {"weights_hash": "e" * 64},
        {"network_hash": "e" * 64},
        {"num_classes": 4},
        {"batch_size": 4},
        {"seed": 2},
        {"batches_per_block": 1},
        {"dtype": "float32"},
        {"tier": "cuda-fp32"},
        {"num_images": 49},
        {"ids": ((0, 25), (26, 51))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_a_value_is_part_of_the_key_of_its_column(change: dict[str, object]) -> None:
    spec = make_spec()
    others = {column.prefix for column in replace(spec, **change).columns}  # type: ignore[arg-type]
    assert len(others) == 3
    assert others.isdisjoint(column.prefix for column in spec.columns)


def test_a_column_without_sense_is_refused() -> None:
    column = make_spec().columns[0]
    with pytest.raises(JobError, match="width of at least 1, found 0"):
        replace(column, width=0)
    with pytest.raises(JobError, match="float16, float32, int8, found 'top32'"):
        replace(column, dtype="top32")  # type: ignore[arg-type]


def test_blocks_do_not_depend_on_the_number_of_teachers() -> None:
    spec = make_spec()
    one = replace(spec, teachers=(B,), embeddings=PIXELS)
    assert all(map(torch.equal, bank_layout(spec), bank_layout(one)))
    assert one.columns[0] == spec.columns[1]
    assert sum(len(ids) for ids in bank_layout(one.columns[1])) == IMAGES
