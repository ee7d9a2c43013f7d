"""Which channel groups are worth trying: Otsu's threshold on trimmed values."""

import math
from collections.abc import Sequence


def trimmed_otsu(values: Sequence[float], trim: float = 0.2) -> float | None:
    """Split values into low and high by the largest between-class variance, after trimming both ends.

    With the values sorted and the ``ceil(trim * n)`` smallest and largest dropped, L remain. For each split into the
    first j and the other L - j, the between-class variance is ``j (L - j) (mean_low - mean_high)^2``, j = 1 .. L - 2;
    the first maximum wins and the threshold is the midpoint between the two values at the split. The trimming keeps
    one extreme channel group from claiming the whole split.

    Source: EKG (arXiv 2203.02651), candidate selection; the range of j is that of the reference program, which never
    splits off a single largest value.

    Args:
        values: one finite number per channel group, in any order.
        trim: share dropped at each end, in [0, 0.5).

    Returns:
        The threshold: entries at or below it are the shortlist. None where fewer than 3 values remain after
        trimming, for which the rule is undefined.
    """
    ordered = sorted(values)
    dropped = math.ceil(trim * len(ordered))
    middle = ordered[dropped : len(ordered) - dropped]
    if len(middle) < 3:
        return None
    total = math.fsum(middle)
    best_variance, threshold, low_sum = -1.0, middle[0], 0.0
    for count in range(1, len(middle) - 1):
        low_sum += middle[count - 1]
        gap = low_sum / count - (total - low_sum) / (len(middle) - count)
        variance = count * (len(middle) - count) * gap * gap
        if variance > best_variance:
            best_variance, threshold = variance, (middle[count - 1] + middle[count]) / 2
    return threshold
