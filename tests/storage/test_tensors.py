"""Tensors rest with equal bytes for equal values; damage is found."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ekgsearch.errors import StorageError
from ekgsearch.storage.tensors import load_tensors, parse_tensors, save_tensors, serialise_tensors, view_arrays

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def example() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {f"{dtype}": (torch.rand(3, 5, generator=generator) * 9).to(dtype) for dtype in DTYPES}
    return {**tensors, "scalar": torch.tensor(2.5), "none": torch.empty(0, 4), 'odd "name" {é': torch.ones(1)}


def test_values_shapes_dtypes_and_metadata_come_back(tmp_path: Path) -> None:
    metadata = {"state": '{"sha256":"not this one"}', "a": "é\n"}
    save_tensors(tmp_path / "a.safetensors", example(), metadata)
    tensors, found = load_tensors(tmp_path / "a.safetensors")
    assert found == metadata
    assert tensors.keys() == example().keys()
    for name, tensor in example().items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", example(), {"k": "v"})
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in example().items())
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["k"] == "v"


def test_bytes_do_not_depend_on_order_strides_or_gradients() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    first = serialise_tensors({"a": weight, "b": torch.ones(2)}, {"x": "1", "y": "2"})
    second = serialise_tensors(
        {"b": torch.ones(2, 2)[0], "a": weight.t().contiguous().t().requires_grad_()}, {"y": "2", "x": "1"}
    )
    assert first == second


def test_the_checksum_is_the_hash_of_the_file_with_zeros_in_its_place() -> None:
    data = bytes(serialise_tensors({"a": torch.ones(2)}))
    start = data.index(b'"sha256":"') + 10
    digest = data[start : start + 64].decode()
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_every_tensor_is_aligned_to_its_elements() -> None:
    """Also behind a header of any length and tensors of one byte."""
    for extra in range(8):
        data = bytes(serialise_tensors(example(), {"x": "." * extra}))
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        del header["__metadata__"]
        for name, entry in header.items():
            start = 8 + length + entry["data_offsets"][0]
            assert start % example()[name].element_size() == 0, name


def test_missing_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.safetensors does not exist"):
        load_tensors(tmp_path / "a.safetensors")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(StorageError, match=r"a\.safetensors has no checksum"):
        load_tensors(tmp_path / "a.safetensors")
    tensors, metadata = load_tensors(tmp_path / "a.safetensors", require_checksum=False)
    assert torch.equal(tensors["a"], torch.ones(2))
    assert metadata == {"format": "pt"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04pickle",
        b"\x00" * 8,
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 20_000) + b"[" * 20_000,
        struct.pack("<Q", 21) + b'{"__metadata__":{1:2}}',
    ],
)
def test_bytes_of_another_format_are_refused(data: bytes) -> None:
    for require_checksum in (True, False):
        with pytest.raises(StorageError, match="the source"):
            parse_tensors(data, "the source", require_checksum=require_checksum)


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"c": torch.ones(1, dtype=torch.complex64)}, {}, "'c' has dtype torch.complex64"),
        ({}, {"sha256": "x"}, "sha256"),
        ({}, {"n": 1}, "must be texts"),
        ({"__metadata__": torch.ones(1)}, {}, "__metadata__"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], reason: str
) -> None:
    with pytest.raises(StorageError, match=reason):
        serialise_tensors(tensors, metadata)


DATA = bytes(serialise_tensors(example(), {"state": "text"}))


def check_damage_is_found(data: bytes) -> None:
    with pytest.raises(StorageError, match=r"^x\.safetensors (is damaged|is no whole|has no checksum)"):
        parse_tensors(data, "x.safetensors")


@given(position=st.integers(0, len(DATA) - 1), mask=st.integers(1, 255))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_flipped_byte_is_found(position: int, mask: int) -> None:
    changed = bytearray(DATA)
    changed[position] ^= mask
    check_damage_is_found(bytes(changed))


@given(start=st.integers(0, len(DATA)), removed=st.integers(1, len(DATA)), added=st.binary(max_size=9))
@settings(max_examples=500, deadline=None)
def test_every_cut_or_exchanged_stretch_is_found(start: int, removed: int, added: bytes) -> None:
    changed = DATA[:start] + added + DATA[start + removed :]
    if changed != DATA:
        check_damage_is_found(changed)


@pytest.mark.slow
def test_every_flipped_bit_of_every_byte_is_found() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            changed = bytearray(DATA)
            changed[position] ^= 1 << bit
            check_damage_is_found(bytes(changed))


@pytest.mark.slow
def test_ten_thousand_truncations_are_found() -> None:
    for number in range(10_000):
        check_damage_is_found(DATA[: number % len(DATA)])


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    with pytest.raises(StorageError, match="no space is left"):
        save_tensors(path, {"a": torch.ones(1_000_000)})
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(3))


def test_a_view_shows_the_same_numbers_without_a_copy() -> None:
    tensors = {
        "half": torch.arange(6, dtype=torch.float16).view(2, 3),
        "int8": torch.tensor([-128, 0, 127], dtype=torch.int8),
        "none": torch.zeros(0, 4),
    }
    data = bytes(serialise_tensors(tensors, {"note": "x"}))
    found = view_arrays(data, "here")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.numpy().dtype
        assert np.array_equal(found[name], tensor.numpy())
        assert not found[name].flags.owndata
        assert not found[name].flags.writeable


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_view_of_something_else_is_refused(keep: int) -> None:
    data = bytes(serialise_tensors({"a": torch.arange(6.0)}, {}))
    with pytest.raises(StorageError, match="here is no whole safetensors file"):
        view_arrays(data[:keep], "here")
