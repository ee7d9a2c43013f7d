"""Networks in files: one safe file with the recipe and the weights of a network."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ekgsearch.artefact.factory import factory_of, zoo_factory
from ekgsearch.artefact.file import Description, load_file, save_file
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import InputShape, Recipe, read_shape
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import find_any, find_given, is_own, library_of, target_of
from ekgsearch.channels.slim import cuts_of
from ekgsearch.errors import NetworkError


def save_network(
    path: str | Path,
    network: nn.Module,
    factory: Callable[..., nn.Module] | str,
    arguments: Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    classes: Sequence[str] = (),
) -> None:
    """Write a network, slim or not, to a safetensors file that `load_network` opens.

    No code is stored, only what made the network: which class or function with which arguments, and which channels were
    cut since. Before anything is written, the network is built once from that, and its state must fit.

    Args:
        path: file to write; its folder must exist.
        network: the network; one of `slim` knows what was cut from it, also after several cuts.
        factory: the class or function that made the unpruned network, or its name: one of the zoo such as `resnet56`,
            `torchvision/resnet18`, `timm/NAME`, `package.module:callable`, `path/file.py:callable`.
        arguments: what it was called with, by name; JSON values.
        input_shape: (channels, height, width) of one image; None for that of the analysis of a slim network.
        mean: subtracted from the pixels of each channel, in pixel units 0..255.
        std: what the difference is divided by, in pixel units 0..255.
        classes: names of the classes in the order of the logits.

    Raises:
        NetworkError: the recipe makes another network than this one.
        StorageError: the disk refuses.
    """
    cuts = cuts_of(network)
    shape = input_shape or (cuts[0][0] if cuts else None)
    if shape is None:
        raise NetworkError(
            "save_network: expected input_shape, (channels, height, width), of a network that is not slim"
        )
    recipe: Recipe = _factory(factory, dict(arguments or {}), read_shape(tuple(shape), "save_network"))
    for _, subnetwork in cuts:
        recipe = Slim(recipe, subnetwork)
    again = build(recipe, find=find_given(factory) if callable(factory) else find_any)
    _check_equal(network, again, recipe)
    words = "slim network" if cuts else "network"
    description = Description(recipe, words, tuple(mean), tuple(std), tuple(classes))
    save_file(Path(path), network.state_dict(), description)


def load_network(
    path: str | Path, factory: Callable[..., nn.Module] | str | None = None, *, trust_factory: bool = False
) -> nn.Module:
    """Build the network of a file with its weights, in evaluation mode.

    Nothing is unpickled, and no code outside ekgsearch, torchvision and timm runs unless you say so. The network can be
    trained, analysed and cut again.

    Args:
        path: `final.safetensors` or `slim.safetensors` of a run, or a file of `save_network`.
        factory: the class or function that makes the unpruned network, or `package.module:callable` or
            `path/file.py:callable`; for networks that are none of ekgsearch, torchvision or timm.
        trust_factory: whether the code that the file itself names may run.

    Raises:
        NetworkError: the file holds no network, names code that must not run, or its weights do not fit.
        StorageError: it is missing or damaged.
    """
    return load_file(Path(path), factory=factory, trust=trust_factory)


def _factory(factory: Callable[..., nn.Module] | str, arguments: dict[str, Any], shape: InputShape) -> Recipe:
    if callable(factory):
        missing = _needed(factory) - set(arguments)
        if missing:
            raise NetworkError(f"save_network: {target_of(factory)} needs the arguments {', '.join(sorted(missing))}")
        return factory_of(target_of(factory), arguments, shape, None, factory)
    if is_own(factory) or library_of(factory):
        return factory_of(factory, arguments, shape, None)
    if "num_classes" not in arguments:
        raise NetworkError(f"save_network: {factory} needs the argument num_classes")
    return zoo_factory(factory, input_shape=shape, **arguments)


def _needed(factory: Callable[..., nn.Module]) -> set[str]:
    """Arguments without which a class or function cannot be called."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name for one in parameters if one.kind in named and one.default is inspect.Parameter.empty}


def _check_equal(network: nn.Module, again: nn.Module, recipe: Recipe) -> None:
    own, other = ({name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (network, again))
    different = [name for name in own.keys() | other.keys() if own.get(name) != other.get(name)]
    if different:
        name = sorted(different)[0]
        raise NetworkError(
            f"save_network: {recipe.name} makes another network than the one to save: {name} is {own.get(name)} there "
            f"and {other.get(name)} from the recipe ({len(different)} tensors differ); give the factory and the "
            "arguments that made the unpruned network, and a network of ekgsearch.slim"
        )
