"""Which candidates of a race may still be the best: one-sided bounds on paired differences between batches."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEAST_BATCHES = 4
"""Batches that are seen before a candidate is dropped; fewer leave the spread of their differences unknown."""

ROUNDS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the batches after which candidates may be dropped; those that are left see all."""


def looks(num_batches: int) -> tuple[int, ...]:
    """Numbers of batches after which candidates may be dropped, ascending; none where there are too few batches."""
    counts = {max(LEAST_BATCHES, math.ceil(share * num_batches)) for share in ROUNDS}
    return tuple(sorted(count for count in counts if count < num_batches))


def still_in(
    sums: NDArray[np.float64], weights: NDArray[np.float64], num_batches: int, error: float
) -> NDArray[np.bool_]:
    """Tell which candidates may still have the lowest mean over all batches.

    A candidate is out when its mean difference d to the candidate that leads is positive beyond doubt, that is
    ``d > t * sd``, with t the ``1 - error`` quantile of Student's distribution with n - 1 degrees of freedom. Batches
    have different sizes, so d is a ratio of sums, and its variance that of a ratio estimator in a sample without
    replacement (Cochran, Sampling Techniques, 3rd ed., eq. 2.39 and 6.13):
    ``sd^2 = (1 - n/N) / (n mean(w)^2) * sum (d_b - d w_b)^2 / (n - 1)`` for differences d_b of the sums of batch b.
    The differences are paired: what all candidates find hard in a batch is not in them.

    Args:
        sums: sum of the scores of the images of each batch seen, (candidates, n), finite; lower is better.
        weights: images of each batch seen, (n,), positive.
        num_batches: N, batches in all; those seen are a random sample of them.
        error: probability with which one candidate that is no worse than the leader may be dropped, 0..0.5.

    Returns:
        (candidates,); the leader, the first at a tie, is always in.
    """
    seen = len(weights)
    means = sums.sum(axis=1) / weights.sum()
    differences = sums - sums[means.argmin()]
    mean = differences.sum(axis=1) / weights.sum()
    residuals = differences - mean[:, None] * weights
    variance = (residuals**2).sum(axis=1) / (seen - 1) * (1 - seen / num_batches) / (seen * weights.mean() ** 2)
    bound: float = stdtrit(seen - 1, 1 - error)
    out: NDArray[np.bool_] = mean > bound * np.sqrt(variance)
    return ~out


def error_of_one_test(error: float, num_candidates: int, num_looks: int) -> float:
    """Share the error probability of a decision over all its tests (Bonferroni).

    The best candidate is lost only if one of the others, at one of the looks, seems better beyond doubt.

    Args:
        error: probability that a decision loses its best candidate, 0..1.
        num_candidates: candidates at the start, at least 2.
        num_looks: times that candidates may be dropped, at least 1.
    """
    return error / ((num_candidates - 1) * num_looks)
