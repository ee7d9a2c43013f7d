"""Recipes: a network written down, so that any process can build it again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from ekgsearch.errors import NetworkError

InputShape = tuple[int, int, int]
"""Shape (channels, height, width) of one image, in pixels."""

Constructor = Callable[..., nn.Module]
"""A class or a function that makes a network."""

LARGEST_SIDE = 65_536
"""Most channels or pixels that one side of an image can have."""


@dataclass(frozen=True, slots=True)
class Making:
    """How recipes are carried out.

    Attributes:
        find: finds the class or function that a target names, or refuses to.
        seed: of the weights; None draws them from torch's global generator.
    """

    find: Callable[[str], Constructor]
    seed: int | None = None


class Recipe(ABC):
    """A network written down: plain values, from which any process builds the same layers.

    A kind of recipe is a frozen data class with this base and one entry in `ekgsearch.artefact.kinds`.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables and messages call the network."""

    @property
    @abstractmethod
    def input_shape(self) -> InputShape:
        """Shape of one image."""

    @abstractmethod
    def make(self, making: Making) -> nn.Module:
        """Build the network.

        Raises:
            NetworkError: it cannot be built, or names code that must not run.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON, without the kind."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a result that was computed with the network depends on, as a JSON value."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any], read: Callable[[Any], "Recipe"]) -> Self:
        """Read the plain form; every value may be wrong.

        Args:
            values: fields by name.
            read: reads the recipe of another network within this one.

        Raises:
            NetworkError: a field is missing, unknown or not of its kind.
        """


def read_shape(value: object, name: str) -> InputShape:
    """The shape of an image from a JSON value.

    Raises:
        NetworkError: it is none.
    """
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_size(side) for side in value):
        raise NetworkError(
            f"network '{name}': input_shape must be three positive numbers (channels, height, width) up to "
            f"{LARGEST_SIDE}, found {value!r}"
        )
    return value[0], value[1], value[2]


def _is_size(side: object) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE


def check_fields(kind: str, values: object, needed: set[str]) -> Mapping[str, Any]:
    """Check the names of a recipe's fields.

    Raises:
        NetworkError: one is missing or unknown.
    """
    if not isinstance(values, Mapping):
        raise NetworkError(f"recipe '{kind}': expected fields {', '.join(sorted(needed))}, found {values!r}")
    if unknown := sorted(map(str, set(values) - needed)):
        raise NetworkError(
            f"recipe '{kind}': unknown fields {', '.join(unknown)}; known are {', '.join(sorted(needed))}"
        )
    if missing := sorted(needed - set(values)):
        raise NetworkError(f"recipe '{kind}': fields {', '.join(missing)} are missing")
    return values
