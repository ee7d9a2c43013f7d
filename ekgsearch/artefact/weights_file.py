"""Read the weights of a file that some program has written: safetensors, or what torch.save makes of a state dict."""

import logging
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ekgsearch.errors import NetworkError

log = logging.getLogger(__name__)

CONTAINERS = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
)
"""Keys under which training programs keep a state dict next to other things; averaged weights come first."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers of a network put before the names of its tensors."""

_COUNTERS = ("n_averaged",)
"""Entries that a wrapper adds, which belong to no network."""

_SAFETENSORS_SUFFIX = ".safetensors"


def read_weights(path: Path, own: Collection[str]) -> dict[str, Tensor]:
    """Read the tensors of a weights file by the names that a network has for them.

    A file of torch.save is read with `weights_only=True`: nothing in it is run. Where the tensors lie in a container
    (`CONTAINERS`) or all their names have a prefix of a wrapper (`PREFIXES`), it is taken off, and the log says so.

    Args:
        path: the file.
        own: names of the network's tensors.

    Returns:
        Tensors on the CPU by name.

    Raises:
        NetworkError: the file is missing, damaged, a pickled module, or holds no state dict.
    """
    if not path.is_file():
        raise NetworkError(f"no weights file {path}: check the path in the job")
    taken: list[str] = []
    if path.suffix == _SAFETENSORS_SUFFIX or not _is_pickled(path):
        tensors = _safetensors(path)
    else:
        tensors, taken = _state_dict(_unpickled(path), path)
    tensors, prefixes = _without_prefixes(tensors, own)
    if taken or prefixes:
        parts = [*(f"the entry {key!r}" for key in taken), *(f"names without {prefix!r}" for prefix in prefixes)]
        log.info("%s: took %s (%d tensors)", path.name, ", ".join(parts), len(tensors))
    return tensors


def _is_pickled(path: Path) -> bool:
    """Whether a file begins as those of torch.save do; of a safetensors file the ninth byte opens a JSON object."""
    with path.open("rb") as file:
        begin = file.read(9)
    return zipfile.is_zipfile(path) or (begin[:1] == pickle.PROTO and begin[8:] != b"{")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise NetworkError(
            f"{path}: expected a safetensors file, or a state dict saved by torch.save, found one that cannot be read: "
            f"{error}; fetch it again, or save it again"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{path}: expected a state dict, found a file with other Python objects, as torch.save(network, ...) "
            "writes it; reading it would run code that it holds. Save the tensors alone where it is at hand:",
            f"  network = torch.load({path.name!r}, weights_only=False)",
            "  torch.save(network.state_dict(), 'weights.pt')",
        ) from error
    except Exception as error:  # torch raises what it comes across in a damaged file
        raise NetworkError(
            f"{path}: expected a file of torch.save, found one that cannot be read: {type(error).__name__}: "
            f"{str(error)[:200]}; fetch it again, or save it again"
        ) from error


def _state_dict(value: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict within what a file holds, and the entries that lead to it."""
    taken: list[str] = []
    while isinstance(value, Mapping):
        tensors = {str(name): entry for name, entry in value.items() if isinstance(entry, Tensor)}
        inner = next((key for key in CONTAINERS if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            if not tensors:
                break
            return tensors, taken
        value = value[inner]
        taken.append(inner)
    keys = ", ".join(map(str, list(value)[:8])) if isinstance(value, Mapping) else type(value).__name__
    raise NetworkError(
        f"{path}: expected a state dict, alone or under one of {', '.join(CONTAINERS)}, found {keys or 'nothing'}; "
        "save network.state_dict()"
    )


def _without_prefixes(tensors: dict[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by names without the prefixes of wrappers, as long as none of the names is the network's."""
    taken: list[str] = []
    names = set(own)
    while not names & set(tensors):
        bare = {name: tensor for name, tensor in tensors.items() if name not in _COUNTERS}
        prefix = next((one for one in PREFIXES if bare and all(name.startswith(one) for name in bare)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
        taken.append(prefix)
    if any("._orig_mod." in name for name in tensors):  # parts that were compiled on their own
        tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
        taken.append("_orig_mod.")
    return tensors, taken
