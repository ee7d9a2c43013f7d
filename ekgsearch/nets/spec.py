"""What a network of the zoo is made from: a small value that can be stored and shipped instead of a module."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ekgsearch.errors import NetworkError

Shortcut = Literal["option_a", "projection"]
"""Shortcut of a down-sampling block: every second pixel and zero channels, or a 1x1 convolution with a norm."""

Padding = Literal["torch", "tf_same"]
"""Padding of stride-2 3x3 convolutions: one pixel on every side, or one at the bottom and the right only."""


@dataclass(frozen=True, slots=True)
class NetSpec:
    """Name and dimensions of a network.

    Attributes:
        name: one of `ekgsearch.nets.zoo.NAMES`.
        num_classes: number of logits.
        input_shape: (channels, height, width) of one image, in pixels.
        shortcut: shortcut of down-sampling blocks of the CIFAR ResNets (arXiv 1512.03385, sec. 3.3, options A and B).
        padding: padding of the stride-2 3x3 convolutions; "tf_same" is what weights trained in TensorFlow need.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    shortcut: Shortcut = "projection"
    padding: Padding = "torch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if self.num_classes < 1:
            raise NetworkError(f"network '{self.name}': num_classes must be at least 1, found {self.num_classes}")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise NetworkError(
                f"network '{self.name}': input_shape must be three positive numbers (channels, height, width), "
                f"found {self.input_shape}"
            )
        for field, value, allowed in (
            ("shortcut", self.shortcut, get_args(Shortcut)),
            ("padding", self.padding, get_args(Padding)),
        ):
            if value not in allowed:
                raise NetworkError(
                    f"network '{self.name}': {field} must be one of {', '.join(allowed)}, found {value!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            "shortcut": self.shortcut,
            "padding": self.padding,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NetSpec":
        """Build from the plain form.

        Raises:
            NetworkError: a field is missing, unknown or out of range.
        """
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(values) - known):
            raise NetworkError(
                f"network spec: unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        if missing := sorted({"name", "num_classes", "input_shape"} - set(values)):
            raise NetworkError(f"network spec: fields {', '.join(missing)} are missing from {dict(values)}")
        return cls(**values)
