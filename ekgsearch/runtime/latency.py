"""Latency of a forward pass on this device: measured, because fewer operations are not always faster."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROUNDS = 15
"""Timed rounds of three passes; the networks take turns, so that a busy machine slows them alike."""

PASS_SECONDS = 0.03
"""A timed pass repeats the network until it takes about so long: a machine with other work to do hands out its cores in
slices of some milliseconds, and a pass that is shorter falls into one or into none."""

MOST_SECONDS = 30.0
LEAST_ROUNDS = 5
"""Of a network so slow that all rounds would take longer than that, as many are timed as do not, and at least these."""

_UNTIMED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Latency:
    """How the full and the slim network compare.

    Attributes:
        full_ms, slim_ms: median time of one pass, milliseconds.
        ratio: full over slim, the median over the rounds; above 1 the slim network is faster.
        ratio_low, ratio_high: quartiles of this ratio over the rounds.
        noise: third quartile of the ratio of two passes of the full network in one round, the longer over the shorter;
            at least 1. A `ratio` that is no further from 1 tells nothing.
    """

    full_ms: float
    slim_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    noise: float


def compare_latencies(
    full: nn.Module,
    slim: nn.Module,
    input_shape: tuple[int, int, int],
    batch_size: int,
    device: torch.device,
    *,
    check: Callable[[], None] = lambda: None,
) -> Latency:
    """Time passes of two networks in turns: full, slim, full.

    Args:
        full: the unpruned network; moved to the device and left in evaluation mode.
        slim: the network to compare; likewise.
        input_shape: (channels, height, width) of one image.
        batch_size: images of one pass.
        device: where to measure.
        check: called before each round; raises to stop there.
    """
    images = torch.rand(batch_size, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    return compare_calls(full.to(device).eval(), slim.to(device).eval(), images, check=check)


@torch.no_grad()
def compare_calls(
    full: Callable[[Tensor], object],
    slim: Callable[[Tensor], object],
    images: Tensor,
    *,
    check: Callable[[], None] = lambda: None,
) -> Latency:
    """Time two functions of images in turns: full, slim, full.

    Args:
        full: runs the unpruned network.
        slim: runs the network to compare.
        images: (B, C, H, W) on the device where they run.
        check: called before each round; raises to stop there.
    """
    calls = (full, slim, full)
    shortest = min(_seconds(call, images, 1) for _ in range(_UNTIMED_ROUNDS) for call in calls)
    repeats = max(1, math.ceil(PASS_SECONDS / shortest))
    affordable = int(MOST_SECONDS / (len(calls) * repeats * shortest))
    rounds = []
    for _ in range(min(ROUNDS, max(LEAST_ROUNDS, affordable))):
        check()
        before, between, after = (_seconds(call, images, repeats) for call in calls)
        rounds.append((before, between, after))
    return summarise(rounds)


def summarise(rounds: Sequence[tuple[float, float, float]]) -> Latency:
    """Summarise rounds of three passes.

    Args:
        rounds: seconds of a pass of the full, the slim and again the full network; at least two rounds, all above 0.
    """
    # The two passes around that of the slim network meet in the middle: a machine that slows down steadily cancels out.
    ratios = [math.sqrt(before * after) / between for before, between, after in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    noise = [max(before / after, after / before) for before, _, after in rounds]
    return Latency(
        full_ms=1000 * statistics.median(seconds for before, _, after in rounds for seconds in (before, after)),
        slim_ms=1000 * statistics.median(between for _, between, _ in rounds),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        noise=statistics.quantiles(noise, n=4, method="inclusive")[2],
    )


def _seconds(call: Callable[[Tensor], object], images: Tensor, repeats: int) -> float:
    """Mean time of one pass of several."""
    _synchronise(images.device)
    start = time.perf_counter()
    for _ in range(repeats):
        call(images)
    _synchronise(images.device)
    return (time.perf_counter() - start) / repeats


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
