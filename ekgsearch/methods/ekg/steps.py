"""How far a channel group is cut at a time: steps, kept numbers, and which channels go first."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Quirk = Literal[
    "halved_warmup_divisor",
    "nominal_batch_means",
    "rank_removed_channels",
    "rounded_rates",
    "sequential_statistics",
    "two_decimal_refinement",
    "unchanged_candidates",
    "whole_vector_shortlist",
]
"""What the program published with the paper does differently where a number depends on it.

halved_warmup_divisor: the warm-up divides the loss of a batch by 128, half its images; this doubles the gradient, not
the weight decay. nominal_batch_means: a batch's sums are divided by the nominal batch size, also for a short last
batch, and the batches are averaged as equals. rank_removed_channels: all channels are ranked anew in every iteration;
removed ones score 0 and so tie with dead ones. rounded_rates: rates are rounded to five decimals and multiplied in
float32. sequential_statistics: batch statistics are float32 sums over one element after the other, as its CPU kernels
form them. two_decimal_refinement: the last step tries widths rounded to two decimals. unchanged_candidates: a channel
group is a candidate until its rate is 0, although its last step may remove nothing. whole_vector_shortlist: a channel
group that was never cut is judged by the sum of all its scores, one that was cut by 0, and so is always on the
shortlist.
"""

QUIRKS: tuple[Quirk, ...] = get_args(Quirk)
"""All of them: the program that was published with the paper."""

REFERENCE = "reference"
"""Value of `search.quirks` in a job that stands for that program."""


def expand_reference(fields: Any) -> Any:
    """Write out ``search.quirks: reference`` in the fields of a job: all quirks, and the counter `ekg`.

    The padding that goes with them depends on the weights: `default_padding`.

    Raises:
        ValueError: the fields name another counter or padding.
    """
    match fields:
        case {"search": {"quirks": quirks, **search}} if quirks == REFERENCE:
            pass
        case _:
            return fields
    if search.setdefault("counter", "ekg") != "ekg":
        raise ValueError(
            f"search.counter = {search['counter']}, but search.quirks reference counts with `ekg`; leave the counter "
            "out, or list the quirks that you want one by one"
        )
    net = fields.get("net")
    if isinstance(net, dict) and net.get("padding") not in (None, "tf_same"):
        raise ValueError(
            f"net.padding = {net['padding']}, but search.quirks reference pads as tf_same; leave the padding out, or "
            "list the quirks that you want one by one"
        )
    return {**fields, "search": {**search, "quirks": QUIRKS}}


def default_padding(quirks: Collection[Quirk]) -> Literal["torch", "tf_same"]:
    """Padding of a network where neither the job nor the sidecar of its weights says one.

    The program published with the paper pads as TensorFlow does; so does a search that has all of its quirks.
    """
    return "tf_same" if set(QUIRKS) <= set(quirks) else "torch"


@dataclass(frozen=True, slots=True)
class StepRule:
    """Kept numbers and rates; exact by default, rounded as in the reference program if asked.

    Attributes:
        is_rounded: the quirk `rounded_rates`. On the published configurations both give the same numbers.
    """

    is_rounded: bool = False

    def num_kept(self, size: int, rate: Fraction) -> int:
        """Channels kept of `size` at a rate in 0..1: ``max(1, ceil(size * rate))`` (EKG, arXiv 2203.02651)."""
        if self.is_rounded:
            return max(1, math.ceil(np.float32(size) * np.float32(float(rate))))
        return max(1, math.ceil(size * rate))

    def narrowed(self, rate: Fraction, step: Fraction) -> Fraction:
        """The rate one step further, never below 0."""
        if self.is_rounded:
            return max(Fraction(0), decimal(round(float(rate) - float(step), 5)))
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


def two_decimal_rates(rate: Fraction, size: int) -> list[tuple[Fraction, Fraction]]:
    """Pairs (rate to try, rate to fall back to) of the quirk `two_decimal_refinement`, from the narrowest on."""
    start = float(rate)
    widths = np.arange(start, start + 0.2, 1 / size)
    return [(decimal(round(float(width), 2)), decimal(round(float(width) - 1 / size, 5))) for width in widths]
