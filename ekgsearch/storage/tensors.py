"""How tensors rest on disk: safetensors files with equal bytes for equal values and a checksum over all of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json
from ekgsearch.storage.checksums import BLANK_CHECKSUM, CHECKSUM_KEY, seal, verify_seal
from ekgsearch.storage.files import read_bytes, write_atomically

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
_CHECKSUM_MARKER = f'"{CHECKSUM_KEY}":"'.encode()  # quotes inside the texts of a JSON header are escaped
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
    header: dict[str, object] = {"__metadata__": {**metadata, CHECKSUM_KEY: BLANK_CHECKSUM}}
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
    seal(data, _checksum_start(data))
    return data


def _checksum_start(data: bytearray | bytes) -> int:
    """Position of the first digit of the checksum in the header; -1 where there is none."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    section = data.find(b'"__metadata__":{', 0, end)
    found = data.find(_CHECKSUM_MARKER, section, end) if section >= 0 else -1
    return found + len(_CHECKSUM_MARKER) if found >= 0 else -1


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
    start = _checksum_start(data)
    if start >= 0:
        verify_seal(data, start, source)
    elif require_checksum:
        raise StorageError(
            f"{source} has no checksum in its metadata (key {CHECKSUM_KEY!r}): it is damaged or another "
            f"program wrote it; write it again with this program"
        )
    try:
        metadata = _read_metadata(data)
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{source} is no whole safetensors file ({len(data)} bytes): {error}; "
            f"restore it from a copy or write it again"
        ) from error
    metadata.pop(CHECKSUM_KEY, None)
    return tensors, metadata


def view_arrays(data: bytes, source: str) -> dict[str, np.ndarray]:
    """Look at the tensors within bytes that somebody has verified, without a copy.

    Args:
        data: bytes of the safetensors format whose checksum the caller has compared.
        source: name of the file or object, for error messages.

    Returns:
        Read-only arrays by name, which share the memory of the bytes.

    Raises:
        StorageError: the bytes are not in the format of `serialise_tensors`.
    """
    names = {name: dtype for dtype, name in _DTYPE_NAMES.items() if dtype is not torch.bfloat16}
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        header = json.loads(data[_LENGTH_BYTES:start])
        del header["__metadata__"]
        arrays = {}
        for name, entry in header.items():
            dtype = torch.empty(0, dtype=names[entry["dtype"]]).numpy().dtype
            count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // dtype.itemsize
            values = np.frombuffer(data, dtype=dtype, count=count, offset=start + entry["data_offsets"][0])
            arrays[name] = values.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StorageError(f"{source} is no whole safetensors file ({len(data)} bytes): {error}") from error
    return arrays


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
