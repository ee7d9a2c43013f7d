"""Steps of the search: how far a channel group is cut at a time, and which of its channels go first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepRule:
    """Kept numbers and rates, exact."""

    def num_kept(self, size: int, rate: Fraction) -> int:
        """Channels kept of `size` at a rate in 0..1: ``max(1, ceil(size * rate))`` (EKG, arXiv 2203.02651)."""
        return max(1, math.ceil(size * rate))

    def narrowed(self, rate: Fraction, step: Fraction) -> Fraction:
        """The rate one step further, never below 0."""
        return max(Fraction(0), rate - step)


def coarse_step(size: int, uses: int, step: float) -> Fraction:
    """Share by which one iteration narrows a channel group: ``max(1 / size, step / uses)``.

    Args:
        size: channels of the channel group.
        uses: u_g, producer convolutions of the group (1 for a private group; 1 + number of blocks that write into a
            residual group), so that a cut that touches many layers is a small one.
        step: r, the prune ratio per step, in (0, 1); taken as the decimal number that it is written as.
    """
    return max(Fraction(1, size), decimal(step) / uses)


def decimal(number: float) -> Fraction:
    """The decimal number that a float is written as, exactly."""
    return Fraction(repr(number))


def importance_order(scores: NDArray[np.float64], channels: Sequence[int]) -> list[int]:
    """Channels from most to least important; ties go to the lower channel index."""
    return sorted(channels, key=lambda channel: (-scores[channel], channel))
