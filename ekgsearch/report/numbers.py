"""Numbers as a person reads them: units, signs, and a dash where there is none."""

import math
from dataclasses import dataclass

NONE = "–"
"""What stands where a number was not measured."""

_SCALES = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def known(value: float | None) -> bool:
    """Tell whether there is a number: neither None, nor NaN, nor infinite."""
    return value is not None and math.isfinite(value)


def count(value: float | None, like: float | None = None) -> str:
    """Format a count of operations or parameters with a decimal prefix, e.g. 125.7 M.

    Args:
        value: what to format.
        like: the number that gets four digits and chooses the prefix for those next to it; by default the value.
    """
    if value is None or not known(value):
        return NONE
    model = value if like is None or not known(like) else like
    for scale, letter in _SCALES:
        if abs(model) >= 0.9995 * scale:
            return f"{value / scale:.{_decimals(model / scale)}f}{letter}"
    return f"{value:.0f}"


def top1(value: float | None) -> str:
    """Format an accuracy in percent with two decimals, without the sign."""
    return f"{value:.2f}" if value is not None and known(value) else NONE


def signed(value: float | None, decimals: int = 2) -> str:
    """Format a difference with its sign."""
    if value is None or not known(value):
        return NONE
    text = f"{value:+.{decimals}f}"
    return (f"{0:.{decimals}f}" if float(text) == 0 else text).replace("-", "−")


def share(value: float | None) -> str:
    """Format a share 0..1 as percent with one decimal."""
    return f"{100 * value:.1f} %" if value is not None and known(value) else NONE


def milliseconds(value: float | None) -> str:
    """Format a latency in milliseconds with three digits."""
    if value is None or not known(value):
        return NONE
    return f"{value:.{max(0, 2 - max(0, int(math.log10(max(value, 1.0)))))}f} ms"


def times(ratio: float) -> str:
    """Format a ratio, such as how many times faster one thing is than another."""
    return f"{ratio:.2f}×" if known(ratio) else NONE


@dataclass(frozen=True)
class TimeUnit:
    """The one unit in which a page gives its device-hours and wall times.

    Attributes:
        name: of the unit, in the plural.
        per_hour: units of an hour.
        decimals: digits behind the point of every number.
    """

    name: str
    per_hour: int
    decimals: int

    @classmethod
    def of(cls, longest: float | None) -> "TimeUnit":
        """The unit that gives the longest time of a page, in hours, four digits."""
        hours = longest if longest is not None and known(longest) else 0.0
        name, per_hour = ("hours", 1) if hours >= 1 else ("minutes", 60) if 60 * hours >= 1 else ("seconds", 3600)
        return cls(name, per_hour, _decimals(hours * per_hour))

    def number(self, hours: float | None) -> str:
        """Format hours as a number of this unit, whose name stands elsewhere."""
        return f"{hours * self.per_hour:.{self.decimals}f}" if hours is not None and known(hours) else NONE


def _decimals(value: float) -> int:
    """Digits behind the point that give a number four digits, at most 3."""
    return max(0, 3 - int(math.log10(max(abs(value), 1.0))))
