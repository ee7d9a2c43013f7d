"""One file for one network: its recipe and its weights, and what else somebody needs who uses it."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ekgsearch.artefact.kinds import build, changed_code, recipe_of, recipe_to_dict
from ekgsearch.artefact.recipe import Constructor, Recipe
from ekgsearch.artefact.targets import finder
from ekgsearch.errors import NetworkError
from ekgsearch.records import canonical_json
from ekgsearch.storage.tensors import load_tensors, save_tensors

_TEXTS = ("recipe", "contents", "mean", "std", "classes")


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Description:
    """What a file says of its network.

    Attributes:
        recipe: what the network is.
        contents: what its weights are, in words, such as "slim network, fine-tuned".
        mean: subtracted from the pixels of each channel, in pixel units 0..255; empty where it is not known.
        std: what the difference is divided by, in pixel units 0..255; empty where it is not known.
        classes: names of the classes, in the order of the logits; empty where they are not known.
    """

    recipe: Recipe
    contents: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()


def save_file(path: Path, state: Mapping[str, Tensor], description: Description) -> None:
    """Write a network to a safetensors file; equal networks give equal bytes.

    Args:
        path: file to write; its folder must exist.
        state: the network's state.
        description: what it is.

    Raises:
        StorageError: the disk refuses.
    """
    texts = {
        "recipe": canonical_json(recipe_to_dict(description.recipe)),
        "contents": description.contents,
        "mean": canonical_json(list(description.mean)),
        "std": canonical_json(list(description.std)),
        "classes": canonical_json(list(description.classes)),
    }
    save_tensors(path, state, texts)


def read_file(path: Path) -> tuple[dict[str, Tensor], Description]:
    """Read what `save_file` wrote; nothing of it is run.

    Returns:
        The network's state, on the CPU, and what it is.

    Raises:
        NetworkError: the file holds no network, or a description that cannot be.
        StorageError: it is missing or damaged.
    """
    tensors, texts = load_tensors(path, require_checksum=False)
    if not set(_TEXTS) <= set(texts):
        raise NetworkError(
            f"{path}: expected a network of ekgsearch, with {', '.join(_TEXTS)} in its metadata, found "
            f"{', '.join(sorted(texts)) or 'none'}; give final.safetensors of a run, or a file of save_network"
        )
    return tensors, _description(path, texts)


def description_of(path: Path) -> Description | None:
    """What a file says of its network, without reading its tensors; None where no program of this package wrote it.

    Raises:
        NetworkError: it has a description that cannot be.
    """
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return _description(path, texts) if set(_TEXTS) <= set(texts) else None


def _description(path: Path, texts: Mapping[str, str]) -> Description:
    try:
        mean, std, classes = (_list(texts[name], name) for name in ("mean", "std", "classes"))
        recipe = recipe_of(json.loads(texts["recipe"]))
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"{path}: its description is no JSON: {error}") from error
    if not all(_is_number(number) for number in (*mean, *std)) or not all(isinstance(name, str) for name in classes):
        raise NetworkError(f"{path}: expected 'mean' and 'std' as numbers and 'classes' as names")
    return Description(recipe, texts["contents"], tuple(mean), tuple(std), tuple(classes))


def load_file(path: Path, *, factory: Constructor | str | None = None, trust: bool = False) -> nn.Module:
    """Build the network of a file with its weights, in evaluation mode.

    Nothing is unpickled, and no code outside ekgsearch, torchvision and timm runs unless the caller says so.

    Args:
        path: a file of `save_file`.
        factory: the class or function that makes the unpruned network, or where it is, `package.module:callable` or
            `path/file.py:callable`; for networks that are none of ekgsearch, torchvision or timm.
        trust: whether the code that the file itself names may run.

    Raises:
        NetworkError: the file holds no network, names code that must not run, or its weights do not fit.
        StorageError: it is missing or damaged.
    """
    state, description = read_file(path)
    try:
        find = finder(factory, trust)
        network = build(description.recipe, find=find)
        network.load_state_dict(state)
        if changed := changed_code(description.recipe, find):
            log.warning(
                "%s: the code of %s has changed since the file was saved, so the network may compute something else "
                "than its weights were trained for",
                path,
                changed,
            )
    except NetworkError as error:
        raise NetworkError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise NetworkError(
            f"{path}: its weights do not fit the network of its recipe ({description.recipe.name}): "
            f"{str(error).splitlines()[-1].strip()}; the code of the network is another than when it was saved"
        ) from error
    return network.eval()


def _list(text: str, name: str) -> list[Any]:
    value = json.loads(text)
    if not isinstance(value, list):
        raise NetworkError(f"expected {name!r} as a list, found {str(value)[:80]}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
