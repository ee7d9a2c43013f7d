"""Files of a folder of recorded decisions: arrays and JSON, each mistake one sentence with its place."""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import DataError


def iteration_arrays(path: Path, graph: ChannelGraph) -> dict[str, NDArray[Any]]:
    """Load the arrays of an iteration: score_GG and mask_GG (size,), width_list (groups,) in 0..1, knowledge.

    Raises:
        DataError: one is missing, of another shape or no finite numbers, or a mask keeps no channel.
    """
    arrays = load_arrays(path)
    sizes = {
        f"{kind}_{index:02d}": group.size for index, group in enumerate(graph.groups) for kind in ("score", "mask")
    }
    sizes["width_list"] = len(graph.groups)
    for name, size in sizes.items():
        found = arrays[name].shape if name in arrays else "none"
        if found != (size,):
            raise DataError(f"{path}: expected an array {name} of shape ({size},), found {found}")
        require_numbers(path, name, arrays[name])
        if name.startswith("mask") and not arrays[name].any():
            raise DataError(f"{path}: expected at least one kept channel in {name}, found none")
    if "knowledge" not in arrays:
        raise DataError(f"{path}: expected an array knowledge (images, classes), found {sorted(arrays)[:5]}...")
    widths = arrays["width_list"]
    if widths.min() < 0 or widths.max() > 1:
        raise DataError(f"{path}: expected widths within 0..1 in width_list, found {widths.min()} to {widths.max()}")
    return arrays


def require_numbers(path: Path, name: str, values: NDArray[Any]) -> None:
    """Refuse an array that holds anything but finite numbers.

    Raises:
        DataError: it does.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected numbers in {name}, found an array of {values.dtype}")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: expected finite numbers in {name}, found {values[~np.isfinite(values)][0]}")


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Load all arrays of an .npz file.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"no file {path}: expected numpy arrays (.npz); fetch the folder again") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected numpy arrays (.npz), found a damaged file: {error}") from error


def read_object(path: Path, expected: str) -> Mapping[str, Any]:
    """Read a JSON file that holds one object; `expected` says in an error what it should hold.

    Raises:
        DataError: it is missing, damaged or holds something else.
    """
    values = _parse(path, _read_text(path, expected), expected)
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected {expected}, found {type(values).__name__}")
    return values


def read_trace(path: Path) -> dict[int, Mapping[str, Any]]:
    """Read a file of JSON objects, one per line, by their `step`.

    Raises:
        DataError: it is missing or damaged, or a line has no step.
    """
    expected = "one JSON object with `step` per line"
    found: dict[int, Mapping[str, Any]] = {}
    for count, text in enumerate(_read_text(path, expected).splitlines(), 1):
        values = _parse(path, text, expected)
        if not isinstance(values, dict) or not re.fullmatch(r"\d+", str(values.get("step"))):
            raise DataError(f"{path}:{count}: expected {expected}, found {text[:60]!r}")
        found[int(values["step"])] = values
    return found


def _read_text(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no file {path}: expected {expected}; fetch the folder again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected {expected}, found a file that cannot be read: {error}") from error


def _parse(path: Path, text: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: expected {expected}, found damaged JSON: {error}") from error
