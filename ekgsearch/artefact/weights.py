"""Pretrained weights: safetensors files, and the sidecar that says which network and which input they belong to."""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

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
        mean: what is subtracted from the pixels of each channel, such as red, green and blue, in pixel units 0..255.
        std: what the difference is divided by, in pixel units 0..255.
        sha256: checksum (hex) of the weights file.
        expected_top1: test accuracy of these weights, percent; None where the sidecar states none.
    """

    net: NetSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    expected_top1: float | None


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a weights file stands: same folder, same stem, .json."""
    return path.with_suffix(".json")


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar of a weights file.

    Two forms are understood. The plain one has the keys `net` (as written by `NetSpec.to_dict`), `mean` and `std`
    (a number for each input channel, pixel units 0..255), `sha256` and, if known, `expected_top1` (percent). The other
    describes the network in words (`architecture`, `padding`, `input`, `measured`); its dimensions are then taken from
    the shapes of the tensors.

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
        mean=_per_channel(input_values, "mean", net.input_shape[0], scale, source),
        std=_per_channel(input_values, "std", net.input_shape[0], scale, source),
        sha256=values["sha256"],
        expected_top1=_expected_top1(values),
    )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load the weights of a safetensors file into a network, in place; every name and shape must match.

    A floating-point type may be another than the network's, to which values are converted.

    Counters of seen batches (`num_batches_tracked`) may be missing. The checksum is verified where a sidecar stands
    beside the file.

    Raises:
        NetworkError: the file is missing or damaged, its checksum is not the sidecar's, names, shapes or kinds of
            numbers differ, or values are none that a trained network has. The network is left as it was.
        StorageError: the file of a sidecar cannot be read.
    """
    if sidecar_path(path).is_file():
        _verify_checksum(path)
    tensors = _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    own = network.state_dict()
    _check_prefix(path, own, tensors)
    missing = [name for name in own if name not in tensors and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    misshaped = [
        f"{name} {tuple(tensor.shape)} where the network has {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    _check_input(path, network, tensors)
    if missing or unexpected or misshaped:
        raise NetworkError(
            f"{path}: the weights do not fit {type(network).__name__}: "
            f"missing {_named(missing)}; unexpected {_named(unexpected)}; other shape {_named(misshaped)}. "
            "Give the name, number of classes and shortcut of the network that was trained"
        )
    _check_values(path, own, tensors)
    network.load_state_dict(tensors, strict=False)
    logger.debug("loaded %d tensors from %s", len(tensors), path)


def _check_prefix(path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Name a prefix that all names have, as wrappers of a network write them."""
    if not tensors or any(name in own for name in tensors):
        return
    words = next(iter(tensors)).split(".")
    for count in range(1, len(words)):
        prefix = ".".join(words[:count]) + "."
        if all(name.startswith(prefix) for name in tensors) and any(name[len(prefix) :] in own for name in tensors):
            raise NetworkError(
                f"{path}: all {len(tensors)} names begin with '{prefix}', which the network's do not, as if a wrapper "
                "of the network had been saved; save the network itself, or take the prefix off the names"
            )


def _check_input(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Name the first convolution where it takes another number of channels."""
    first = next(((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or f"{first[0]}.weight" not in tensors:
        return
    name, (given, own) = f"{first[0]}.weight", (tensors[f"{first[0]}.weight"], first[1].weight)
    if given.dim() == own.dim() and given.shape[0] == own.shape[0] and given.shape[1] != own.shape[1]:
        raise NetworkError(
            f"{path}: the first layer, {name}, takes images of {given.shape[1]} channels, the network here images of "
            f"{own.shape[1]}; choose weights for such images, or images of {given.shape[1]} channels (data.channels)"
        )


def _check_values(path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Name tensors that no trained network has; all of them are known to the network."""
    of_integers, not_finite, negative = [], [], []
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            of_integers.append(f"{name} of {str(tensor.dtype).removeprefix('torch.')}")
        # A number may be finite in the file and not in the type of the network.
        elif not tensor.to(own[name].dtype).isfinite().all():
            not_finite.append(name)
        elif name.endswith("running_var") and (tensor < 0).any():
            negative.append(name)
    if of_integers or not_finite or negative:
        raise NetworkError(
            f"{path}: expected the weights of a trained network, found integers instead of floating-point numbers in "
            f"{_named(of_integers)}; values that are not finite in {_named(not_finite)}; negative variances in "
            f"{_named(negative)}; save the weights again, or choose others"
        )


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


def _per_channel(values: Mapping[str, Any], key: str, channels: int, scale: float, source: Path) -> tuple[float, ...]:
    numbers = values.get(key)
    known = isinstance(numbers, list) and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
    if not isinstance(numbers, list) or not known or len(numbers) != channels:
        raise NetworkError(
            f"{source}: expected '{key}' as {channels} finite numbers, one per input channel, found {numbers!r}"
        )
    if key == "std" and min(numbers) <= 0:
        raise NetworkError(f"{source}: expected positive deviations in 'std', found {numbers!r}")
    return tuple(float(number) * scale for number in numbers)


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
