"""How tensors rest on disk: safetensors files with equal bytes for equal values and a checksum over all of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json
from ekgsearch.storage.files import read_bytes, write_atomically

CHECKSUM_KEY = "sha256"
"""Metadata key of the checksum: SHA-256 of the whole file with 64 zeros in the checksum's place."""

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLANK_CHECKSUM = "0" * 64
_LENGTH_BYTES = 8
_ALIGNMENT = 8


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to a safetensors file in two phases.

    Equal names, values and metadata give equal bytes, whatever their order, device or strides.

    Args:
        path: file to write; its folder must exist.
        tensors: tensors of any shape and a plain dtype.
        metadata: texts to keep beside them; the key ``sha256`` is taken.

    Raises:
        StorageError: a dtype or a metadata value cannot be stored, or the disk refuses.
    """
    write_atomically(path, serialise_tensors(tensors, metadata))


def serialise_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytearray:
    """Content of the file that `save_tensors` writes, for stores that are no folder.

    Args:
        tensors: tensors of any shape and a plain dtype.
        metadata: texts to keep beside them; the key ``sha256`` is taken.

    Returns:
        Bytes of the safetensors format.

    Raises:
        StorageError: a dtype or a metadata value cannot be stored.
    """
    metadata = dict(metadata or {})
    if CHECKSUM_KEY in metadata or not all(isinstance(text, str) for text in metadata.values()):
        raise StorageError(
            f"tensor metadata must be texts without the key {CHECKSUM_KEY!r}; found keys {sorted(metadata)}"
        )
    if "__metadata__" in tensors:
        raise StorageError("a tensor is named '__metadata__', which the file format takes for itself; rename it")
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUM_KEY: _BLANK_CHECKSUM}}
    chunks, offset = [], 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        if tensor.dtype not in _DTYPE_NAMES:
            raise StorageError(
                f"tensor {name!r} has dtype {tensor.dtype}; expected one of {sorted(_DTYPE_NAMES.values())}"
            )
        chunk = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + chunk.nbytes],
        }
        chunks.append(chunk.data)
        offset += chunk.nbytes
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    data = bytearray().join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *chunks])
    _write_checksum(data)
    return data


def _write_checksum(data: bytearray) -> None:
    """Put the checksum of a serialised file in its place."""
    start = _checksum_start(data)
    data[start : start + len(_BLANK_CHECKSUM)] = hashlib.sha256(data).hexdigest().encode()


def _checksum_start(data: bytearray | bytes) -> int:
    """Position of the first digit of the checksum; -1 where there is none."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    marker = canonical_json({CHECKSUM_KEY: ""})[1:-2].encode()
    section = data.find(b'"__metadata__":{', 0, end)
    found = data.find(marker, section, end) if section >= 0 else -1
    return found + len(marker) if found >= 0 else -1


def load_tensors(path: Path, *, require_checksum: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read and verify a safetensors file.

    Args:
        path: file to read.
        require_checksum: whether a file without a checksum, as other programs write, is refused.

    Returns:
        Tensors on the CPU by name, and the metadata without the checksum.

    Raises:
        StorageError: the file is missing, truncated, changed, or no safetensors file.
    """
    return parse_tensors(read_bytes(path), str(path), require_checksum=require_checksum)


def parse_tensors(
    data: bytes, source: str, *, require_checksum: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Verify and read what `serialise_tensors` made.

    Args:
        data: bytes of the safetensors format.
        source: name of the file or object, for error messages.
        require_checksum: whether data without a checksum is refused.

    Returns:
        Tensors on the CPU by name, and the metadata without the checksum.

    Raises:
        StorageError: the bytes are truncated, changed, or not in the safetensors format.
    """
    try:
        metadata = _read_metadata(data)
        expected = metadata.pop(CHECKSUM_KEY, None)
        if expected is not None or require_checksum:
            _verify_checksum(data, expected, source)
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{source} is no whole safetensors file ({len(data)} bytes): {error}; "
            f"restore it from a copy or write it again"
        ) from error
    return tensors, metadata


def _read_metadata(data: bytes) -> dict[str, str]:
    """Metadata texts in the header of a safetensors file."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise ValueError("its header is cut off")
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    metadata = header.get("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    return dict(metadata)


def _verify_checksum(data: bytes, expected: str | None, source: str) -> None:
    """Compare the checksum in the metadata with that of the bytes."""
    if expected is None:
        raise StorageError(
            f"{source} has no checksum in its metadata (key {CHECKSUM_KEY!r}): it was changed or another program "
            f"wrote it; write it again with this program"
        )
    start, size = _checksum_start(data), len(_BLANK_CHECKSUM)
    digest = hashlib.sha256(data[:start])
    digest.update(_BLANK_CHECKSUM.encode())
    digest.update(memoryview(data)[start + size :])
    if start < 0 or data[start : start + size].decode() != expected or digest.hexdigest() != expected:
        raise StorageError(
            f"{source} is damaged: expected SHA-256 {expected[:64]}, found {digest.hexdigest()} over {len(data)} "
            f"bytes; restore it from a copy or write it again"
        )
