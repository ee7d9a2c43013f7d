"""Numbers as a person reads them: units, signs, and a dash where there is none."""

import math

NONE = "–"
"""What stands where a number was not measured."""

_SCALES = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def known(value: float | None) -> bool:
    """Tell whether there is a number: neither None, nor NaN, nor infinite."""
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """Format a count of operations or parameters with four digits and a decimal prefix, e.g. 125.7 M."""
    if value is None or not known(value):
        return NONE
    for scale, letter in _SCALES:
        if abs(value) >= 0.9995 * scale:
            digits = max(0, 3 - int(math.log10(max(abs(value) / scale, 1.0))))
            return f"{value / scale:.{digits}f}{letter}"
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


def times(before: float | None, after: float | None) -> str:
    """Format how many times faster `after` is than `before`."""
    if before is None or after is None or not known(before) or not known(after) or after <= 0:
        return NONE
    return f"{before / after:.2f}×"


def hours(value: float | None) -> str:
    """Format hours with three digits, or minutes or seconds where that reads better."""
    if value is None or not known(value):
        return NONE
    if value >= 1:
        return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} h"
    if value >= 1 / 60:
        return f"{60 * value:.1f} min"
    return f"{3600 * value:.1f} s"
