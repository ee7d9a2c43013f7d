"""Recipe of a network that a class or a function makes."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ekgsearch.artefact.recipe import Constructor, InputShape, Making, Recipe, check_fields, read_shape
from ekgsearch.artefact.targets import (
    REFUSED_ARGUMENTS,
    check_target,
    find_any,
    is_file_target,
    is_own,
    library_of,
    source_of,
)
from ekgsearch.errors import NetworkError
from ekgsearch.nets import zoo
from ekgsearch.nets.options import Padding, Shortcut

CLASSES_ARGUMENTS = ("num_classes", "classes")
"""Arguments by which constructors take the number of classes."""

MOST_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True)
class Factory(Recipe):
    """A network that a class or a function makes from JSON values.

    Attributes:
        target: a name of the zoo, `torchvision/NAME`, `timm/NAME`, `package.module:callable` or
            `path/file.py:callable`.
        arguments: what it is called with, by name; JSON values.
        input_shape: shape of one image.
        source: identity of its code, the version of its package or the hash of its source; empty for the zoo.
    """

    kind: ClassVar[str] = "factory"
    target: str
    arguments: Mapping[str, Any]
    input_shape: InputShape
    source: str = ""

    @property
    def name(self) -> str:
        """The target without the folder of a file."""
        return Path(self.target).name if is_file_target(self.target) else self.target

    def make(self, making: Making) -> nn.Module:
        """Call the class or function.

        Raises:
            NetworkError: there is none, it must not run, or it fails.
        """
        if not is_own(self.target) and not library_of(self.target):
            return self._of_zoo(making.seed)
        constructor = making.find(self.target)
        self._check_arguments()
        with torch.random.fork_rng(devices=[], enabled=making.seed is not None):
            if making.seed is not None:
                torch.manual_seed(making.seed)
            network = self._call(lambda: constructor(**self.arguments))
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self.target} makes a {type(network).__name__}, expected a torch.nn.Module")
        return network

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON, without the kind."""
        return {
            "target": self.target,
            "arguments": dict(self.arguments),
            "input_shape": list(self.input_shape),
            "source": self.source,
        }

    def identity(self) -> dict[str, Any]:
        """Everything but the folder of a file: its content counts, its place does not."""
        return {"kind": self.kind, **self.to_dict(), "target": self.name}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], read: Callable[[Any], Recipe]) -> Self:
        """Read the plain form.

        Raises:
            NetworkError: a field is missing, unknown or not of its kind.
        """
        fields = check_fields(cls.kind, values, {"target", "arguments", "input_shape", "source"})
        target, arguments = fields["target"], fields["arguments"]
        if not isinstance(target, str) or not isinstance(fields["source"], str) or not isinstance(arguments, dict):
            raise NetworkError(
                "recipe 'factory': expected 'target' and 'source' as texts and 'arguments' by name, found "
                f"{str(dict(fields))[:120]}"
            )
        found = cls(target, arguments, read_shape(fields["input_shape"], target), fields["source"])
        found._check_arguments()
        return found

    def _of_zoo(self, seed: int | None) -> nn.Module:
        padding = self.arguments.get("padding", "torch")
        check_target(self.target)
        zoo.check_size(self.target, padding, self.input_shape)
        return self._call(lambda: zoo.build(self.target, **self.arguments, seed=seed))

    def _call(self, construct: Callable[[], nn.Module]) -> nn.Module:
        try:
            return construct()
        except NetworkError:
            raise
        except Exception as error:
            raise NetworkError(
                f"{self.target} cannot be made with arguments {json.dumps(dict(self.arguments))[:200]}: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error

    def _check_arguments(self) -> None:
        """Refuse arguments that make files be fetched or opened, and numbers of classes that no network has."""
        refused = sorted(REFUSED_ARGUMENTS & set(self.arguments)) if library_of(self.target) else []
        if refused:
            raise NetworkError(
                f"{self.target}: the argument {refused[0]} is not passed on; weights are given as a file, net.weights"
            )
        for name in CLASSES_ARGUMENTS:
            classes = self.arguments.get(name, 1)
            whole = isinstance(classes, int) and not isinstance(classes, bool)
            if (not whole or not 1 <= classes <= MOST_CLASSES) and not is_own(self.target):
                raise NetworkError(
                    f"network '{self.target}': {name} must be a whole number from 1 to {MOST_CLASSES:,}, found "
                    f"{str(classes)[:40]}"
                )


def zoo_factory(
    name: str,
    num_classes: int,
    input_shape: InputShape,
    shortcut: Shortcut = "projection",
    padding: Padding = "torch",
) -> Factory:
    """Recipe of a network of the zoo; see `ekgsearch.nets.zoo.build`.

    Raises:
        NetworkError: there is no such network, not in this form, or not for such images.
    """
    check_target(name)
    zoo.check(name, shortcut, padding)
    shape = read_shape(input_shape, name)
    zoo.check_size(name, padding, shape)
    arguments = {"num_classes": num_classes, "channels": shape[0], "shortcut": shortcut, "padding": padding}
    return Factory.from_dict(
        {"target": name, "arguments": arguments, "input_shape": list(shape), "source": ""}, _no_other
    )


def factory_of(
    target: str,
    arguments: Mapping[str, Any],
    input_shape: InputShape,
    num_classes: int | None,
    constructor: Constructor | None = None,
) -> Factory:
    """Recipe of a network of torchvision, timm or anybody's own code.

    The number of classes is filled in where the constructor takes one by the name `num_classes` or `classes` and none
    is given, and for timm the channels of an image.

    Args:
        target: see `Factory.target`.
        arguments: JSON values.
        input_shape: shape of one image.
        num_classes: number of classes of the images; None fills nothing in.
        constructor: the class or function itself, where it is at hand.

    Raises:
        NetworkError: there is no such network, module, file, class or function.
    """
    found = find_any(target) if constructor is None else constructor
    filled: dict[str, Any] = {}
    if num_classes is not None and library_of(target) == "timm":
        filled["in_chans"] = input_shape[0]
    if num_classes is not None and not any(name in arguments for name in CLASSES_ARGUMENTS):
        taken = ("num_classes",) if library_of(target) else _taken(found)
        filled |= dict.fromkeys(taken[:1], num_classes)
    plain = {"target": target, "arguments": filled | dict(arguments), "input_shape": list(input_shape)}
    return Factory.from_dict({**plain, "source": source_of(target, found)}, _no_other)


def _taken(constructor: Constructor) -> tuple[str, ...]:
    """Which of the arguments for the number of classes a constructor takes by name."""
    try:
        parameters = inspect.signature(constructor).parameters
    except (TypeError, ValueError):  # of compiled code
        return ()
    return tuple(name for name in CLASSES_ARGUMENTS if name in parameters)


def _no_other(values: Any) -> Recipe:
    raise AssertionError(f"a factory holds no other recipe, found {values}")
