"""Forms in which networks of the zoo exist."""

from typing import Literal

Shortcut = Literal["option_a", "projection"]
"""Shortcut of a down-sampling block: every second pixel and zero channels, or a 1x1 convolution with a norm."""

Padding = Literal["torch", "tf_same"]
"""Padding of stride-2 3x3 convolutions: one pixel on every side, or one at the bottom and the right only."""
