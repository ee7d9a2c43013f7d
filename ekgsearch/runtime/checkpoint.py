"""How the state of a training is kept: nested dictionaries of tensors and plain values in one verified file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.paths import inside
from ekgsearch.storage.tensors import load_tensors, save_tensors

_STATE_KEY = "state"
_TENSOR, _MAPPING, _TUPLE, _FLOAT = "tensor", "mapping", "tuple", "float"


def save_state(folder: Path, state: Mapping[str, Any], *, name: str = "checkpoint") -> Path:
    """Write a nested state in two phases: a crash leaves the old checkpoint or the new one.

    Args:
        folder: folder of the checkpoint, made where it is missing.
        state: dictionaries (keys: text or integers), lists and tuples of tensors, numbers, texts, booleans and None;
            the ``state_dict()`` of modules and optimizers and the states of random generators are such.
        name: name of the file without its ending.

    Returns:
        The file, ``folder/name.safetensors``.

    Raises:
        StorageError: a value is of another kind, or the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    structure = canonical_json(_flatten(state, "state", tensors))
    make_folder(folder)
    path = checkpoint_path(folder, name)
    save_tensors(path, tensors, {_STATE_KEY: structure})
    return path


def load_state(folder: Path, *, name: str = "checkpoint", device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read and verify what `save_state` wrote.

    Args:
        folder: folder of the checkpoint.
        name: name of the file without its ending.
        device: where the tensors go; states of random generators must stay on the CPU.

    Returns:
        The state, equal to the one that was saved.

    Raises:
        StorageError: the file is missing, damaged or no checkpoint.
    """
    path = checkpoint_path(folder, name)
    tensors, metadata = load_tensors(path)
    if _STATE_KEY not in metadata:
        raise StorageError(f"{path} is no checkpoint: its metadata lack {_STATE_KEY!r}; name the file of a checkpoint")
    state: dict[str, Any] = _unflatten(json.loads(metadata[_STATE_KEY]), tensors, torch.device(device))
    return state


def checkpoint_path(folder: Path, name: str = "checkpoint") -> Path:
    """File of a checkpoint.

    Args:
        folder: folder of the checkpoint.
        name: name of the file without its ending.
    """
    return inside(folder, f"{name}.safetensors")


def _flatten(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Turn a value into JSON; tensors go to ``tensors`` under the name of their place."""
    match value:
        case Tensor():
            while where in tensors:  # keys may hold "/" themselves, and 1 and "1" are written alike
                where += "'"
            tensors[where] = value
            return {_TENSOR: where}
        case Mapping():
            if not all(type(key) in (str, int) for key in value):
                raise StorageError(
                    f"{where} has keys {list(value)[:5]}; a checkpoint takes keys that are text or integers"
                )
            return {_MAPPING: [[key, _flatten(item, f"{where}/{key}", tensors)] for key, item in value.items()]}
        case list():
            return [_flatten(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]
        case tuple():
            return {_TUPLE: [_flatten(item, f"{where}/{index}", tensors) for index, item in enumerate(value)]}
        case float() if not math.isfinite(value):
            return {_FLOAT: repr(value)}
        case None | bool() | int() | float() | str():
            return value
    raise StorageError(
        f"{where} is of type {type(value).__name__}; a checkpoint takes tensors, numbers, texts, booleans, None, "
        f"dictionaries, lists and tuples"
    )


def _unflatten(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Undo `_flatten`."""
    if isinstance(value, list):
        return [_unflatten(item, tensors, device) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content].to(device)
        case "mapping":
            return {key: _unflatten(item, tensors, device) for key, item in content}
        case "tuple":
            return tuple(_unflatten(item, tensors, device) for item in content)
        case "float":
            return float(content)
    raise StorageError(f"a checkpoint holds the unknown mark {kind!r}; a later version of this program wrote it")
