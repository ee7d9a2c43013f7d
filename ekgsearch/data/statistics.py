"""Mean and standard deviation of pixels, exact on every machine and with any number of threads."""

import math

import torch
from torch import Tensor

_EXTRA_BITS = 64
"""Bits of the root beyond the units of its argument: far more than the 53 that a float keeps."""


def mean_and_deviation(pixels: Tensor) -> tuple[float, float]:
    """Mean and standard deviation (of the whole population) of pixels, in pixel units 0..255.

    Floating-point sums depend on how threads share them, and these numbers are part of a run's identity. Sums of whole
    numbers do not: both results are computed in them and rounded once, at the end.

    Args:
        pixels: at least one, uint8, of any shape, on any device.
    """
    counts = torch.bincount(pixels.flatten(), minlength=256).tolist()
    total = sum(counts)
    first = sum(level * count for level, count in enumerate(counts))
    second = sum(level * level * count for level, count in enumerate(counts))
    root = math.isqrt((total * second - first * first) << 2 * _EXTRA_BITS)
    return first / total, root / (total << _EXTRA_BITS)
