"""Similarities between the filters of a layer, as EPruner clusters them (arXiv 2101.07985 and its program)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekgsearch.errors import NetworkError
from ekgsearch.maths.messages import Floats, Indices

_CLOSE = 1e-6
"""Squared distance, as a share of both squared norms, below which the Gram form leaves too few digits."""

_NOISE_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Similarities between the distinct filters of a layer: all that does not depend on beta.

    Of filters that are equal in every number, all-zero ones included, the first stands for all. It takes 8 n^2 bytes,
    8 MB for 1024 filters; while it is made, three times that and the filters in float64.

    Attributes:
        distinct: indices of the filters that stand for all, ascending, (n,).
        values: s(i,j) = -||x_i - x_j||^2 with the noise that breaks ties, diagonal zero, (n, n).
        medians: median of each column of s without noise, its zero diagonal included, (n,).
        uniform: s without noise, where that is the same for every pair, or there is none (0); else None.
    """

    distinct: Indices
    values: Floats
    medians: Floats
    uniform: float | None

    @classmethod
    def of(cls, filters: NDArray[np.floating[Any]]) -> "Similarity":
        """Compare the filters of a layer.

        Args:
            filters: X, (c, d): one filter in each row, c >= 1, d >= 1, of any float dtype; computed in float64.

        Raises:
            NetworkError: a number is not finite, or its square is not.
        """
        points = np.ascontiguousarray(filters, dtype=np.float64)
        distinct = representatives(points)
        exact = similarities(points if len(distinct) == len(points) else points[distinct])
        return cls(distinct, _with_noise(exact, _noise(len(exact))), _medians(exact), _uniform(exact))

    def preferences(self, beta: float) -> Floats:
        """Preferences p(i) = beta * median of column i, with noise, (n,)."""
        return _with_noise(beta * self.medians, _noise(len(self.medians)).diagonal())


def representatives(filters: Floats) -> Indices:
    """Indices of the filters that are equal to none before them, ascending; 0.0 and -0.0 are equal."""
    _, place, times = np.unique(filters[:, 0], return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    repeated = [
        index
        for index in np.flatnonzero(times[place] > 1).tolist()
        if first.setdefault((filters[index] + 0.0).tobytes(), index) != index
    ]
    return np.delete(np.arange(len(filters)), repeated)


def similarities(points: Floats) -> Floats:
    """Negative squared Euclidean distances, symmetric with a zero diagonal.

    They come from the Gram matrix, those of points that are close to each other from their differences; each has a
    relative error of at most about 1e-9.

    Args:
        points: (n, d).

    Returns:
        (n, n).

    Raises:
        NetworkError: a number is not finite, or its square is not.
    """
    squares = np.einsum("ij,ij->i", points, points)
    if not np.isfinite(squares).all():
        row = int(np.flatnonzero(~np.isfinite(squares))[0])
        raise NetworkError(
            f"weights: expected finite numbers whose squares are finite, found others in filter {row} (of the distinct "
            "ones of its layer); such weights cannot be clustered, train the network again"
        )
    scale = np.add.outer(squares, squares)
    found: Floats = points @ points.T
    found *= 2
    found -= scale
    scale *= -_CLOSE
    is_close = found > scale
    np.fill_diagonal(is_close, False)
    for row in np.flatnonzero(is_close.any(axis=1)).tolist():
        columns = np.flatnonzero(is_close[row])
        differences = points[columns] - points[row]
        found[row, columns] = -np.einsum("ij,ij->i", differences, differences)
    np.fill_diagonal(found, 0)
    return found


def _medians(rows: Floats) -> Floats:
    """Medians of the rows; `np.median` takes 1.4 to 4 times as long."""
    half = rows.shape[1] // 2
    ordered = np.partition(rows, half, axis=1)
    if rows.shape[1] % 2:
        return ordered[:, half].copy()
    medians: Floats = (ordered[:, :half].max(axis=1) + ordered[:, half]) / 2
    return medians


def _uniform(exact: Floats) -> float | None:
    value = exact[0, -1]
    if not (exact[0, 1:] == value).all():
        return None
    is_same = exact == value
    np.fill_diagonal(is_same, True)
    return float(value) if is_same.all() else None


@lru_cache(maxsize=8)
def _noise(size: int) -> Floats:
    """Numbers that scikit-learn draws for so many points; read-only."""
    noise: Floats = np.random.RandomState(_NOISE_SEED).standard_normal((size, size))
    noise.setflags(write=False)
    return noise


def _with_noise(exact: Floats, noise: Floats) -> Floats:
    """Numbers with a relative noise of the size of their rounding, which breaks ties."""
    limits = np.finfo(np.float64)
    found: Floats = exact * limits.eps
    found += limits.tiny * 100
    found *= noise
    found += exact
    return found
