"""Sidecar of a weights file: a JSON file that says which network and which input the weights belong to."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ekgsearch.artefact.factory import Factory, zoo_factory
from ekgsearch.errors import NetworkError
from ekgsearch.storage.files import file_sha256

_NET_KEYS = {"name", "num_classes", "input_shape", "shortcut", "padding"}


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What stands next to a weights file; every part may be missing.

    Attributes:
        net: the network of the zoo that the weights belong to.
        normalisation: mean and deviation of the pixels of each channel, such as red, green and blue, in pixel units
            0..255: what is subtracted, and what the difference is divided by.
        sha256: checksum (hex) of the weights file.
        expected_top1: test accuracy of these weights, percent.
    """

    net: Factory | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    sha256: str | None = None
    expected_top1: float | None = None


def sidecar_path(path: Path) -> Path:
    """Place of the sidecar of a weights file: same folder, same stem, .json."""
    return path.with_suffix(".json")


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar of a weights file.

    Its keys, each of which may be left out: `net` (`name`, `num_classes`, `input_shape`, and `shortcut` and `padding`
    where they are not the usual ones), `mean` and `std` (a number for each input channel, pixel units 0..255), `sha256`
    of the weights file and `expected_top1` in percent. Others are not looked at.

    Args:
        path: the weights file.

    Returns:
        What it says; nothing at all where there is no sidecar.

    Raises:
        NetworkError: it cannot be read, or a value is none that the key can have.
    """
    source = sidecar_path(path)
    if not source.is_file():
        return Sidecar()
    values = _read_json(source)
    net = _net(values["net"], source) if "net" in values else None
    sha256, top1 = values.get("sha256"), values.get("expected_top1")
    if sha256 is not None and not isinstance(sha256, str):
        raise NetworkError(f"{source}: expected 'sha256' with the checksum of {path.name}, found {sha256!r}")
    if top1 is not None and not (_is_number(top1) and 0 <= top1 <= 100):
        raise NetworkError(f"{source}: expected 'expected_top1' in percent, 0 to 100, found {top1!r}")
    return Sidecar(net, _normalisation(values, net, source), sha256, None if top1 is None else float(top1))


def verify_checksum(path: Path) -> None:
    """Compare a weights file with the checksum of its sidecar, where that has one.

    Raises:
        NetworkError: they differ, or the sidecar cannot be read.
        StorageError: the file cannot be read.
    """
    expected = read_sidecar(path).sha256
    if expected is None:
        return
    found = file_sha256(path)
    if found != expected:
        raise NetworkError(
            f"{path}: expected SHA-256 {expected or 'none'} (from {sidecar_path(path).name}), found {found}; "
            "fetch the file again, or mend the sidecar if the file is new on purpose"
        )


def _read_json(source: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NetworkError(f"{source}: expected a JSON object, found a file that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise NetworkError(f"{source}: expected a JSON object, found {type(values).__name__}")
    return values


def _net(values: Any, source: Path) -> Factory:
    if not isinstance(values, dict) or not {"name", "num_classes", "input_shape"} <= set(values) <= _NET_KEYS:
        raise NetworkError(
            f"{source}: expected 'net' with name, num_classes, input_shape and, if need be, shortcut and padding, "
            f"found {str(values)[:120]}"
        )
    try:
        return zoo_factory(**values)
    except NetworkError as error:
        raise NetworkError(f"{source}: {error}") from error
    except TypeError as error:  # a value that is not even of the right kind
        raise NetworkError(f"{source}: 'net' cannot be {str(values)[:120]}: {error}") from error


def _normalisation(
    values: Mapping[str, Any], net: Factory | None, source: Path
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if "mean" not in values and "std" not in values:
        return None
    channels = net.input_shape[0] if net else len(values["mean"]) if isinstance(values.get("mean"), list) else 3
    mean, std = (_per_channel(values, key, channels, source) for key in ("mean", "std"))
    return mean, std


def _per_channel(values: Mapping[str, Any], key: str, channels: int, source: Path) -> tuple[float, ...]:
    numbers = values.get(key)
    if not isinstance(numbers, list) or not all(_is_number(n) for n in numbers) or len(numbers) != channels:
        raise NetworkError(
            f"{source}: expected '{key}' as {channels} finite numbers, one per input channel, found {numbers!r}"
        )
    if key == "std" and min(numbers) <= 0:
        raise NetworkError(f"{source}: expected positive deviations in 'std', found {numbers!r}")
    return tuple(float(number) for number in numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
