"""How far a channel group is cut at a time: steps, kept numbers, and which channels go first.

Rates are exact fractions. The reference program rounds them to five decimals, which for some widths (3, or 64 at a
step of 1/64) keeps one channel more than the rule says; on the published configurations both give the same numbers.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def num_kept(size: int, rate: Fraction) -> int:
    """Channels kept of `size` at a rate in 0..1: ``max(1, ceil(size * rate))`` (EKG, arXiv 2203.02651)."""
    return max(1, math.ceil(size * rate))


def coarse_step(size: int, uses: int, step: float) -> Fraction:
    """Share by which one iteration narrows a channel group: ``max(1 / size, step / uses)``.

    Args:
        size: channels of the channel group.
        uses: u_g, producer convolutions of the group (1 for a private group; 1 + number of blocks that write into a
            residual group), so that a cut that touches many layers is a small one.
        step: r, the prune ratio per step, in (0, 1); taken as the decimal number that it is written as.
    """
    return max(Fraction(1, size), Fraction(str(step)) / uses)


def narrowed(rate: Fraction, step: Fraction) -> Fraction:
    """The rate one step further, never below 0."""
    return max(Fraction(0), rate - step)


def importance_order(scores: NDArray[np.float64], kept: Sequence[int]) -> list[int]:
    """Kept channels from most to least important; ties go to the lower channel index.

    Removed channels are not ranked at all, so that masks stay nested even where a kept channel is dead (score 0).
    """
    return sorted(kept, key=lambda channel: (-scores[channel], channel))
