"""The speed of the slim network against that of the unpruned one, and what the noise lets anybody tell."""

import math
from dataclasses import dataclass

from ekgsearch.report import numbers
from ekgsearch.rows.run import SummaryRow


@dataclass(frozen=True)
class Speed:
    """Latencies at one batch size.

    Attributes:
        batch: images of one pass.
        full_ms, slim_ms: median latency of the unpruned and the slim network, milliseconds.
        ratio: unpruned over slim; above 1 the slim network is faster.
        low, high: quartiles of the ratio over the pairs of passes; NaN in older tables.
        noise: ratio of two passes of the unpruned network, the longer over the shorter; NaN in older tables.
    """

    batch: int
    full_ms: float
    slim_ms: float
    ratio: float
    low: float
    high: float
    noise: float

    @property
    def is_told(self) -> bool:
        """Whether the networks differ by more than the unpruned network differs from itself."""
        return abs(math.log(self.ratio)) > math.log(self.noise) if numbers.known(self.noise) else True

    @property
    def has_spread(self) -> bool:
        """Whether `text` gives the quartiles."""
        return numbers.known(self.noise) and self.is_told

    @property
    def factor(self) -> str:
        """The ratio in a few signs, or that it is lost in the noise."""
        return numbers.times(self.ratio) if self.is_told else "within noise"

    @property
    def text(self) -> str:
        """The ratio with its spread and the noise, in words."""
        if not numbers.known(self.noise):
            return f"{self.factor} as fast, noise not measured"
        noise = f"±{100 * (self.noise - 1):.0f} %"
        if not self.is_told:
            return f"no difference beyond the noise of {noise}"
        return f"{self.factor} as fast ({self.low:.2f} to {self.high:.2f}), noise {noise}"


def speeds(s: SummaryRow) -> list[Speed]:
    """Return what was measured of a run, small batches first; empty if nothing was."""
    found = [
        Speed(
            1,
            s.full_latency_ms,
            s.slim_latency_ms,
            s.latency_ratio,
            s.latency_ratio_low,
            s.latency_ratio_high,
            s.latency_noise,
        ),
        Speed(
            64,
            s.full_latency_batch64_ms,
            s.slim_latency_batch64_ms,
            s.latency_ratio_batch64,
            s.latency_ratio_low_batch64,
            s.latency_ratio_high_batch64,
            s.latency_noise_batch64,
        ),
    ]
    measured = [speed for speed in found if numbers.known(speed.full_ms) and numbers.known(speed.slim_ms)]
    return [_with_ratio(speed) for speed in measured]


def _with_ratio(speed: Speed) -> Speed:
    """Fill in what tables of an older version lack."""
    if numbers.known(speed.ratio):
        return speed
    nan = math.nan
    return Speed(speed.batch, speed.full_ms, speed.slim_ms, speed.full_ms / speed.slim_ms, nan, nan, nan)
