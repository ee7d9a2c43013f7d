"""A bank survives the way into a store and out again, and nothing else passes for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bank import IMAGES, PIXELS, SUBNETWORKS, block, build, build_missing, forward, make_spec, pixels
from torch import Tensor

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.build import Outputs, build_block, write_block
from ekgsearch.bank.column import ColumnManifest
from ekgsearch.bank.commit import MissingBlock, closest_bank, commit, find_all, missing_blocks, read_bank
from ekgsearch.bank.layout import bank_layout, id_ranges
from ekgsearch.bank.manifest import BankManifest, BankSpec
from ekgsearch.bank.rows import BankDtype, BankRows, RowFormat, encode
from ekgsearch.bank.shards import write_shard
from ekgsearch.errors import JobError, NumericsError, StorageError
from ekgsearch.records import Subnetwork
from ekgsearch.storage.objects import ObjectStore, open_store


@pytest.fixture
def spec() -> BankSpec:
    return make_spec()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


def test_every_image_is_in_one_block_and_only_the_last_batch_is_short(spec: BankSpec) -> None:
    layout = bank_layout(spec)
    assert [len(ids) for ids in layout] == [16, 16, 16, 2]
    assert len(layout) == spec.num_blocks
    assert sorted(torch.cat(layout).tolist()) == list(range(IMAGES))
    assert torch.cat(layout).tolist() != list(range(IMAGES))


def half_a_step(values: Tensor) -> Tensor:
    """What int8 may err at most: half of 1/254 of the range, 0 included, of each teacher's outputs for each image."""
    return (values.amax(dim=1, keepdim=True).clamp(min=0) - values.amin(dim=1, keepdim=True).clamp(max=0)) / 508


@pytest.mark.parametrize("embeddings", [0, PIXELS])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_rows_are_read_back_by_image_id(
    store: ObjectStore, spec: BankSpec, tmp_path: Path, dtype: BankDtype, embeddings: int
) -> None:
    spec = replace(spec, dtype=dtype, embeddings=embeddings)
    build(store, spec)
    commit(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=tmp_path / "cache")
    assert (len(bank), bank.num_teachers) == (IMAGES, 3)
    for index, ids in enumerate(bank_layout(spec)):
        found, made = bank.read(ids.flip(0)), block(spec, index)
        pairs = [(found.logits, made.logits)]
        if embeddings:
            assert found.embeddings is not None
            assert made.embeddings is not None
            assert (found.embeddings[made.embeddings.flip(0) == 0] == 0).all(), "removed channels must stay exactly 0"
            pairs.append((found.embeddings, made.embeddings))
        else:
            assert found.embeddings is None
        for values, expected in pairs:
            assert values.dtype == torch.float32
            bound = {"float32": 0 * expected, "float16": expected.abs() * 2**-11, "int8": half_a_step(expected)}[dtype]
            assert ((values.flip(0) - expected).abs() <= bound * (1 + 1e-5) + 1e-7).all()


def test_int8_keeps_zeros_ends_and_constant_rows() -> None:
    rows = torch.stack([torch.zeros(5), torch.full((5,), 3.0), torch.full((5,), -2.0), torch.linspace(-1, 253, 5)])
    row_format = RowFormat(num_classes=5, embeddings=0, num_teachers=1, dtype="int8")
    packed = np.zeros((len(rows), row_format.row_bytes), dtype=np.uint8)
    row_format.place(packed, 0, {name: values.numpy() for name, values in encode(rows, "logits", "int8").items()})
    found = row_format.decode(torch.from_numpy(packed)).logits[:, :, 0]
    torch.testing.assert_close(found[:3], rows[:3], rtol=1e-6, atol=0)
    assert ((found - rows).abs() <= half_a_step(rows) * (1 + 1e-5)).all()
    assert row_format.row_bytes == 8 + 8


def test_a_row_recomputed_in_its_batch_agrees(store: ObjectStore, spec: BankSpec, tmp_path: Path) -> None:
    spec = replace(spec, dtype="float32")
    build(store, spec)
    commit(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=tmp_path)
    batch = bank_layout(spec)[1][: spec.batch_size]
    again = torch.stack([forward(pixels()[batch], teacher).logits for teacher in SUBNETWORKS], dim=-1)
    torch.testing.assert_close(bank.read(batch).logits, again, rtol=0, atol=1e-5)


def test_a_killed_build_continues_with_the_missing_blocks(store: ObjectStore, spec: BankSpec, tmp_path: Path) -> None:
    build(store, spec, [0, 2])
    assert missing_blocks(store, spec) == [MissingBlock(block, (0, 1, 2)) for block in (1, 3)]
    with pytest.raises(
        StorageError, match=r"expected 4 blocks of each of 3 columns .*, 2 are missing \(first \[1, 3\]"
    ):
        commit(store, spec, patience_seconds=0)
    with pytest.raises(StorageError, match="found none; build it first"):
        MemoryBank.open(store, spec, cache_dir=tmp_path)
    build(store, spec, [1, 3])
    assert missing_blocks(store, spec, verify=True) == []
    assert [[shard.block for shard in column.shards] for column in commit(store, spec).columns] == [[0, 1, 2, 3]] * 3


def test_writing_a_block_twice_changes_nothing(store: ObjectStore, spec: BankSpec) -> None:
    build(store, spec)
    before = {key: store.get(key) for key in store.list()}
    build(store, spec)
    assert {key: store.get(key) for key in store.list()} == before
    assert len(before) == 4 * 3


def flip_a_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-1], lambda data: b""])
def test_a_damaged_shard_is_named_and_rebuilt_alone(
    store: ObjectStore, spec: BankSpec, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    build(store, spec)
    bank = commit(store, spec)
    shard = bank.columns[1].shards[2]
    store.put(shard.key, damage(store.get(shard.key)))
    with pytest.raises(StorageError, match=f"{shard.key}: expected .* bytes with SHA-256 {shard.sha256}"):
        MemoryBank.open(store, spec, cache_dir=tmp_path).wait()
    assert missing_blocks(store, spec, verify=True) == [MissingBlock(2, (1,))]
    assert build_missing(store, spec) == [(2, 2)], "one teacher on the two batches of one block"
    assert commit(store, spec) == bank
    reader = MemoryBank.open(store, spec, cache_dir=tmp_path)
    torch.testing.assert_close(reader.read(bank_layout(spec)[2]).logits, block(spec, 2).logits, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("field", ["dataset_hash", "weights_hash"])
def test_a_bank_of_something_else_is_refused_with_the_difference(
    store: ObjectStore, spec: BankSpec, tmp_path: Path, field: str
) -> None:
    build(store, spec)
    commit(store, spec)
    other = replace(spec, **{field: "e" * 64})
    with pytest.raises(StorageError, match=f"{field}: expected {'e' * 64}, found"):
        MemoryBank.open(store, other, cache_dir=tmp_path)
    store.put(other.manifest_key, store.get(spec.manifest_key))
    with pytest.raises(StorageError, match=f"is another memory bank: {field}: expected {'e' * 64}"):
        MemoryBank.open(store, other, cache_dir=tmp_path)


def test_a_damaged_manifest_is_named_and_written_again(store: ObjectStore, spec: BankSpec, tmp_path: Path) -> None:
    build(store, spec)
    bank = commit(store, spec)
    for key in (spec.manifest_key, spec.columns[2].manifest_key):
        whole = store.get(key)
        cut_short = whole.replace(b'"columns":["', b'"columns":["","')
        for damaged in (whole[:40], b"[]", b"{}", whole.replace(b'"version":4', b'"version":9'), cut_short):
            store.put(key, damaged)
            if damaged != whole:
                with pytest.raises(StorageError, match=r"manifest.json: expected"):
                    MemoryBank.open(store, spec, cache_dir=tmp_path)
                assert commit(store, spec) == read_bank(store, spec) == bank
                assert store.get(key) == whole


def test_a_column_that_was_built_again_is_not_taken_for_the_one_that_a_bank_names(
    store: ObjectStore, spec: BankSpec, tmp_path: Path
) -> None:
    spec = replace(spec, dtype="float32")
    build(store, spec)
    first = commit(store, spec)
    column = spec.columns[1]
    store.delete(first.columns[1].shards[3].key)
    store.delete(column.manifest_key)
    assert missing_blocks(store, spec) == [MissingBlock(3, (1,))]
    write_shard(store, column, 3, block(spec, 3).logits[:, :, 1] + 1e-6)
    commit(store, replace(spec, teachers=spec.teachers[1:2]))
    with pytest.raises(StorageError, match=rf"{column.manifest_key}: expected the column {first.manifest.columns[1]}"):
        MemoryBank.open(store, spec, cache_dir=tmp_path)
    second = commit(store, spec)
    assert read_bank(store, spec) == second
    assert [a == b for a, b in zip(first.columns, second.columns, strict=True)] == [True, False, True]


def test_the_manifest_of_a_column_counts_what_it_lists(store: ObjectStore, spec: BankSpec) -> None:
    build(store, spec)
    column = commit(store, spec).columns[0]
    num_bytes = sum(store.sizes(f"{column.spec.prefix}/block-").values())
    assert column.counters == {"images": IMAGES, "blocks": 4, "bytes": num_bytes}
    with pytest.raises(StorageError, match=r"it counts .*51.* and lists"):
        ColumnManifest.from_bytes(column.to_bytes().replace(b'"images":50', b'"images":51'), "here")
    with pytest.raises(StorageError, match=r"here: expected .* \(it lists other blocks than 0\.\.3\)"):
        ColumnManifest.from_bytes(replace(column, shards=column.shards[1:]).to_bytes(), "here")


def test_ids_outside_the_bank_are_refused(store: ObjectStore, spec: BankSpec, tmp_path: Path) -> None:
    build(store, spec)
    commit(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=tmp_path)
    for wrong in (-1, IMAGES):
        with pytest.raises(StorageError, match=rf"ids of the 50 images that it covers.*found \[{wrong}\]"):
            bank.read(torch.tensor([0, wrong]))


def test_a_bank_of_some_images_is_keyed_by_their_ids(store: ObjectStore, spec: BankSpec, tmp_path: Path) -> None:
    used = torch.tensor([*range(3, 20), 24, *range(30, 41)])
    some = replace(spec, num_images=len(used), ids=id_ranges(used))
    assert some.ids == ((3, 20), (24, 25), (30, 41))
    assert sorted(torch.cat(bank_layout(some)).tolist()) == some.image_ids.tolist() == used.tolist()
    build(store, some)
    manifest = commit(store, some).manifest
    assert BankManifest.from_bytes(manifest.to_bytes(), "here") == manifest
    bank = MemoryBank.open(store, some, cache_dir=tmp_path)
    for index, ids in enumerate(bank_layout(some)):
        torch.testing.assert_close(bank.read(ids).logits, block(some, index).logits, rtol=2e-3, atol=2e-3)
    for wrong in (0, 20, 29, 41):
        with pytest.raises(StorageError, match=rf"ids of the 29 images that it covers.*found \[{wrong}\]"):
            bank.read(torch.tensor([3, wrong]))


def test_a_bank_of_other_images_is_not_taken(store: ObjectStore, spec: BankSpec) -> None:
    some = replace(spec, num_images=29, ids=((0, 28), (40, 41)))
    other = replace(some, ids=((0, 29),))
    assert len({bank.prefix for bank in (spec, some, other)}) == 3
    build(store, some)
    bank = commit(store, some)
    with pytest.raises(
        StorageError, match=r"found none \(the closest of 1 others differs: ids: expected 29 among 0\.\.28"
    ):
        read_bank(store, other)
    store.put(other.manifest_key, bank.manifest.to_bytes())
    with pytest.raises(
        StorageError, match=r"is another memory bank: ids: expected 29 among .*, found 29 among 0\.\.40"
    ):
        read_bank(store, other)
    assert "ids: expected those of all images, found 29 among" in "; ".join(spec.differences(some))
    store.put(some.manifest_key, replace(bank.manifest, spec=other).to_bytes())
    assert commit(store, some) == read_bank(store, some) == bank, "what names other images is written again"
    store.put(some.manifest_key, b"damaged")
    assert "the closest of 1 others" in closest_bank(store, spec), "a manifest that is damaged is left out"


def test_logits_that_are_no_numbers_or_too_large_are_refused(store: ObjectStore, spec: BankSpec) -> None:
    def broken(images: Tensor, teacher: Subnetwork) -> Outputs:
        logits = forward(images, teacher).logits
        return Outputs(logits * float("nan") if teacher == SUBNETWORKS[1] else logits)

    with pytest.raises(NumericsError, match=r"finite logits.*teachers \[1\]"):
        build_block(broken, [pixels()[:4]], SUBNETWORKS, spec.columns)
    with pytest.raises(NumericsError, match="store the bank as float32"):
        write_block(store, spec, 0, BankRows(block(spec, 0).logits * 1e6))
    with pytest.raises(StorageError, match=r"block 0: expected \(images, values\) \(16, 3\), found \(2, 3\)"):
        write_block(store, spec, 0, block(spec, 3))
    with pytest.raises(StorageError, match=r"teachers\) {'logits': \(3, 3\)}, found .*'embeddings': \(4, 3\)}"):
        write_block(store, spec, 0, block(replace(spec, embeddings=PIXELS), 0))
    assert find_all(store, spec) == [{}] * 3


def test_sizes_are_those_of_the_paper() -> None:
    hashes = {"dataset_hash": "", "weights_hash": "", "teachers": tuple("abcde")}
    cifar = BankSpec(num_images=50_000, num_classes=10, dtype="float32", **hashes)
    imagenet = BankSpec(num_images=1_281_167, num_classes=1000, **hashes)
    assert cifar.num_bytes == 10_000_000
    assert imagenet.num_bytes == pytest.approx(12.8e9, rel=1e-3)
    assert replace(imagenet, dtype="int8").num_bytes == pytest.approx(6.4e9, rel=0.01)


def test_specs_without_sense_are_refused(spec: BankSpec) -> None:
    with pytest.raises(JobError, match="batch_size of at least 1, found 0"):
        replace(spec, batch_size=0)
    with pytest.raises(JobError, match="at least one teacher"):
        replace(spec, teachers=())
    with pytest.raises(JobError, match="float16, float32, int8, found 'top32'"):
        replace(spec, dtype="top32")
    with pytest.raises(JobError, match="found -1"):
        replace(spec, embeddings=-1)
    for ids in (((0, 49),), ((0, 25), (20, 45)), ((-1, 49),), ((0, 25), (25, 50)), ((25, 50), (0, 25))):
        with pytest.raises(JobError, match="expected ascending ranges of 50 ids"):
            replace(spec, ids=ids)


def test_a_manifest_survives_its_bytes(store: ObjectStore, spec: BankSpec) -> None:
    build(store, spec)
    bank = commit(store, spec)
    assert BankManifest.from_bytes(bank.manifest.to_bytes(), "here") == bank.manifest
    for column in bank.columns:
        assert ColumnManifest.from_bytes(column.to_bytes(), "here") == column
