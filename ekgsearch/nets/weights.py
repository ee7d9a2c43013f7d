"""Pretrained weights: safetensors files, and the sidecar that says which network and which input they belong to."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn

from ekgsearch.errors import NetworkError
from ekgsearch.nets.spec import NetSpec, Padding, Shortcut
from ekgsearch.storage.files import file_sha256

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_NUM_NAMED = 4
"""How many tensors an error names before it only counts them."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What stands beside a weights file.

    Attributes:
        net: the network that the weights belong to.
        mean: what is subtracted from the red, green and blue pixels, in pixel units 0..255.
        std: what the difference is divided by, in pixel units 0..255.
        sha256: checksum (hex) of the weights file.
        expected_top1: test accuracy of these weights, percent; None where the sidecar states none.
    """

    net: NetSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    expected_top1: float | None


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a weights file stands: same folder, same stem, .json."""
    return path.with_suffix(".json")


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar of a weights file.

    Two forms are understood. The plain one has the keys `net` (as written by `NetSpec.to_dict`), `mean` and `std`
    (three numbers each, pixel units 0..255), `sha256` and, if known, `expected_top1` (percent). The other describes
    the network in words (`architecture`, `padding`, `input`, `measured`); its dimensions are then taken from the
    shapes of the tensors.

    Args:
        path: the .safetensors file.

    Raises:
        NetworkError: there is no sidecar, or it does not say what is needed.
    """
    source = sidecar_path(path)
    values = _read_json(source)
    net = NetSpec.from_dict(values["net"]) if "net" in values else _net_from_words(values, path, source)
    input_values = values.get("input", values)
    scale = _pixel_scale(input_values, source) if "input" in values else 1.0
    if not isinstance(values.get("sha256"), str):
        raise NetworkError(f"{source}: expected a key 'sha256' with the checksum of {path.name}, found none")
    return Sidecar(
        net=net,
        mean=_three(input_values, "mean", scale, source),
        std=_three(input_values, "std", scale, source),
        sha256=values["sha256"],
        expected_top1=_expected_top1(values),
    )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load the weights of a safetensors file into a network, in place; every name and shape must match.

    Counters of seen batches (`num_batches_tracked`) may be missing. The checksum is verified where a sidecar stands
    beside the file.

    Raises:
        NetworkError: the file is missing or damaged, its checksum is not the sidecar's, or names or shapes differ.
        StorageError: the file of a sidecar cannot be read.
    """
    if sidecar_path(path).is_file():
        _verify_checksum(path)
    tensors = _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    own = network.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    misshaped = [
        f"{name} {tuple(tensor.shape)} where the network has {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if missing or unexpected or misshaped:
        raise NetworkError(
            f"{path}: the weights do not fit {type(network).__name__}: "
            f"missing {_named(missing)}; unexpected {_named(unexpected)}; other shape {_named(misshaped)}. "
            "Give the name, number of classes and shortcut of the network that was trained"
        )
    network.load_state_dict(tensors, strict=False)
    logger.debug("loaded %d tensors from %s", len(tensors), path)


def _read_json(source: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NetworkError(
            f"no sidecar {source}: name the network and its input normalisation in the job, or write the sidecar"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise NetworkError(f"{source}: expected a JSON object, found a file that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise NetworkError(f"{source}: expected a JSON object, found {type(values).__name__}")
    return values


def _read(path: Path, read: Callable[[Any], _T]) -> _T:
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except FileNotFoundError:
        raise NetworkError(f"no weights file {path}: check the path in the job") from None
    except (OSError, SafetensorError) as error:
        raise NetworkError(
            f"{path}: expected a safetensors file, found one that cannot be read: {error}; fetch it again"
        ) from error


def _verify_checksum(path: Path) -> None:
    expected = str(_read_json(sidecar_path(path)).get("sha256", ""))
    found = file_sha256(path)
    if found != expected:
        raise NetworkError(
            f"{path}: expected SHA-256 {expected or 'none'} (from {sidecar_path(path).name}), found {found}; "
            "fetch the file again, or mend the sidecar if the file is new on purpose"
        )


def _net_from_words(values: Mapping[str, Any], path: Path, source: Path) -> NetSpec:
    words = str(values.get("architecture", ""))
    shapes = _read(path, lambda file: {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    padding: Padding = "tf_same" if str(values.get("padding", "")).startswith("TensorFlow 'SAME'") else "torch"
    if match := re.search(r"CIFAR ResNet-(\d+)", words):
        shortcut: Shortcut = "projection" if any(".shortcut.0." in name for name in shapes) else "option_a"
        return NetSpec(f"resnet{match[1]}", _classes(shapes, "linear.weight", source), (3, 32, 32), shortcut, padding)
    if re.search(r"MobileNet-v2, width 1\.0", words):
        size = re.search(r"(\d+)x(\d+)", words)
        height, width = (int(size[1]), int(size[2])) if size else (224, 224)
        name = "mobilenet_v2_cifar" if height <= 32 else "mobilenet_v2"
        return NetSpec(name, _classes(shapes, "classifier.1.weight", source), (3, height, width), padding=padding)
    raise NetworkError(
        f"{source}: expected 'net' (name, num_classes, input_shape) or a known 'architecture', found {words!r}; "
        "add 'net' to the sidecar"
    )


def _classes(shapes: Mapping[str, tuple[int, ...]], classifier: str, source: Path) -> int:
    if classifier not in shapes:
        raise NetworkError(f"{source}: the weights have no tensor '{classifier}' that tells the number of classes")
    return shapes[classifier][0]


def _pixel_scale(input_values: Mapping[str, Any], source: Path) -> float:
    """What turns the sidecar's means and deviations into pixel units 0..255."""
    layout = str(input_values.get("layout", ""))
    if "0..255" in layout:
        return 1.0
    if "divided by 255" in layout:
        return 255.0
    raise NetworkError(
        f"{source}: expected input.layout to say 'pixel values 0..255' or 'divided by 255', found {layout!r}"
    )


def _three(values: Mapping[str, Any], key: str, scale: float, source: Path) -> tuple[float, float, float]:
    numbers = values.get(key)
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(isinstance(n, int | float) for n in numbers):
        raise NetworkError(f"{source}: expected '{key}' as three numbers (red, green, blue), found {numbers!r}")
    red, green, blue = (float(number) * scale for number in numbers)
    return red, green, blue


def _expected_top1(values: Mapping[str, Any]) -> float | None:
    if "expected_top1" in values:
        return float(values["expected_top1"])
    measured = values.get("measured", {})
    for block in (measured, *(value for value in measured.values() if isinstance(value, dict))):
        if "top1_percent" in block:
            return float(block["top1_percent"])
    return None


def _named(names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "none"
    rest = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + rest
