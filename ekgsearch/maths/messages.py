"""Message passing of affinity propagation over several similarity matrices of one size."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

MAX_SWEEPS = 200

UNCHANGED_SWEEPS = 15
"""Sweeps without a change of the exemplars that end the message passing; scikit-learn looks from the next sweep on."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """State of the messages of one matrix after the last sweep.

    Attributes:
        is_exemplar: whether each point is one, r(j,j) + a(j,j) > 0, before any refinement; (n,).
        converged: whether they were unchanged, and at least one, for `UNCHANGED_SWEEPS` sweeps.
        sweeps: sweeps made.
    """

    is_exemplar: Bools
    converged: bool
    sweeps: int


def pass_messages(similarities: Floats, damping: float) -> list[Outcome]:
    """Send responsibilities and availabilities until the exemplars stay the same, for each matrix on its own.

    The messages, the order of every sum and the rule to stop are those of scikit-learn; at damping 0.5, which is
    factored out without rounding, all bits that are computed are equal to its own. The pairs (i, j) with
    s(i,j) < s(i,i) are left out, and nothing changes by that:

    * They never have the largest a(i,j) + s(i,j) of their row, for a(i,j) <= 0 <= a(i,i). So r(i,j) < 0 in every
      sweep, and they add nothing to the sum of their column.
    * All those of a column therefore have the same availability: one number per column stands for them.
    * They can have the second largest a(i,j) + s(i,j) where the diagonal has the largest; only then are they read.

    With preferences s(i,i) of at most the median of their row, no more than half of the pairs remain.

    Source: Frey and Dueck, "Clustering by passing messages between data points", Science 315 (2007).

    Args:
        similarities: (B, n, n), n >= 2, finite, the preferences on the diagonals; only read.
        damping: lambda, the share of the old message in the new one, in [0.5, 1).

    Returns:
        One outcome per matrix.
    """
    messages = _Messages.start(similarities)
    running = np.arange(len(similarities))
    previous = np.zeros(similarities.shape[:2], dtype=bool)
    unchanged = np.zeros(len(similarities), dtype=int)
    outcomes: dict[int, Outcome] = {}
    for sweep in range(1, MAX_SWEEPS + 1):
        is_exemplar = messages.sweep(damping)
        unchanged += 1
        unchanged[(is_exemplar != previous).any(axis=1)] = 1
        previous = is_exemplar
        if sweep <= UNCHANGED_SWEEPS:
            continue
        is_done = (unchanged >= UNCHANGED_SWEEPS) & is_exemplar.any(axis=1)
        if is_done.any():
            outcomes |= {
                int(running[item]): Outcome(is_exemplar[item], True, sweep) for item in np.flatnonzero(is_done)
            }
            running, previous, unchanged = running[~is_done], previous[~is_done], unchanged[~is_done]
            if not running.size:
                break
            messages = messages.only(~is_done)
    outcomes |= {int(item): Outcome(last, False, MAX_SWEEPS) for item, last in zip(running, previous, strict=True)}
    return [outcomes[item] for item in range(len(similarities))]


@dataclass(slots=True, eq=False, kw_only=True)
class _Messages:
    """Messages of the pairs that are not left out: m of each row, first the diagonal, then the others by column.

    Attributes:
        similarity: s of each pair, (B, n, m); -inf where a row has fewer pairs.
        column: j of each pair, plus n for each matrix before its own, (B, n, m).
        responsibility, availability: r and a of each pair, (B, n, m).
        left_out: s of the pairs left out, -inf elsewhere, (B * n, n).
        highest: the largest number of each row of `left_out`, (B * n,).
        highest_at: its column, (B * n,).
        common: the availability of the pairs left out of each column, (B, n).
        scratch: room for one number per pair, (B, n, m).
        starts: where each row begins in a flat array of pairs, (B * n,).
    """

    similarity: Floats
    column: Indices
    responsibility: Floats
    availability: Floats
    left_out: Floats
    highest: Floats
    highest_at: Indices
    common: Floats
    scratch: Floats
    starts: Indices

    @classmethod
    def start(cls, similarities: Floats) -> "_Messages":
        """Choose the pairs; every message is zero."""
        batch, n, _ = similarities.shape
        own, points = np.arange(n), np.arange(batch * n)
        preferences = similarities[:, own, own]
        is_used = similarities >= preferences[:, :, None]
        is_used[:, own, own] = False
        used = np.flatnonzero(is_used)
        bounds = np.searchsorted(used, np.arange(batch * n + 1) * n)
        lengths = np.diff(bounds)
        m = int(lengths.max()) + 1
        places = np.arange(1, len(used) + 1) + np.repeat(points * m - bounds[:-1], lengths)
        similarity = np.full((batch, n, m), -np.inf)
        similarity.reshape(-1)[places] = similarities.reshape(-1)[used]
        similarity[:, :, 0] = preferences
        column = np.repeat(points, m).reshape(batch, n, m)
        column.reshape(-1)[places] = used - np.repeat((points - points // n) * n, lengths)
        left_out = similarities.reshape(batch * n, n).copy()
        left_out.reshape(-1)[used] = -np.inf
        left_out[points, points % n] = -np.inf
        highest_at = left_out.argmax(axis=1)
        return cls(
            similarity=similarity,
            column=column,
            responsibility=np.zeros_like(similarity),
            availability=np.zeros_like(similarity),
            left_out=left_out,
            highest=left_out[points, highest_at],
            highest_at=highest_at,
            common=np.zeros((batch, n)),
            scratch=np.empty_like(similarity),
            starts=points * m,
        )

    def only(self, is_kept: Bools) -> "_Messages":
        """The messages of some matrices of the batch."""
        kept = np.flatnonzero(is_kept)
        n = self.common.shape[1]
        is_kept_row = np.repeat(is_kept, n)
        shift = n * (kept - np.arange(len(kept)))
        return _Messages(
            similarity=self.similarity[kept],
            column=self.column[kept] - shift[:, None, None],
            responsibility=self.responsibility[kept],
            availability=self.availability[kept],
            left_out=self.left_out[is_kept_row],
            highest=self.highest[is_kept_row],
            highest_at=self.highest_at[is_kept_row],
            common=self.common[kept],
            scratch=self.scratch[: len(kept)],
            starts=self.starts[: len(kept) * n],
        )

    def sweep(self, damping: float) -> Bools:
        """Renew every responsibility, then every availability; returns whether each point is an exemplar, (B, n)."""
        self._renew_responsibilities(damping)
        self._renew_availabilities(damping)
        is_exemplar: Bools = self.availability[:, :, 0] + self.responsibility[:, :, 0] > 0
        return is_exemplar

    def _renew_responsibilities(self, damping: float) -> None:
        """r(i,j) = s(i,j) - max over j' != j of a(i,j') + s(i,j')."""
        new = np.add(self.availability, self.similarity, out=self.scratch)
        flat = new.reshape(-1)
        best = new.argmax(axis=2).reshape(-1)
        largest_at = self.starts + best
        largest = flat[largest_at]
        flat[largest_at] = -np.inf
        second = new.max(axis=2).reshape(-1)
        (rows,) = (second < self.highest).nonzero()  # only where the diagonal, above all left out, is the largest
        if rows.size:
            second[rows] = np.maximum(second[rows], self._largest_left_out(rows))
        np.subtract(self.similarity, largest.reshape(*new.shape[:2], 1), out=new)
        flat[largest_at] = self.similarity.reshape(-1)[largest_at] - second
        _damp(self.responsibility, new, damping)

    def _largest_left_out(self, rows: Indices) -> Floats:
        """Largest a(i,j) + s(i,j) of the pairs left out of some rows; no a(i,j) is positive."""
        largest = self.highest[rows]
        matrices = rows // self.common.shape[1]
        is_lowered = self.common[matrices, self.highest_at[rows]] < 0
        others = self.left_out[rows[is_lowered]]
        others += self.common[matrices[is_lowered]]
        largest[is_lowered] = others.max(axis=1)
        return largest

    def _renew_availabilities(self, damping: float) -> None:
        """a(i,j) = min(0, r(j,j) + sum over i' not in {i, j} of max(0, r(i',j))); a(j,j) is the sum alone."""
        is_added = self.responsibility > 0
        is_added[:, :, 0] = True
        (added,) = is_added.reshape(-1).nonzero()
        column, responsibility = self.column.reshape(-1)[added], self.responsibility.reshape(-1)[added]
        sums = np.bincount(column, responsibility, self.common.size)
        bounded = np.minimum(sums, 0)
        new = bounded.take(self.column, out=self.scratch, mode="clip")  # the default mode would copy
        new.reshape(-1)[added] = np.minimum(sums[column] - responsibility, 0)
        new[:, :, 0] = sums.reshape(self.common.shape) - self.responsibility[:, :, 0]
        _damp(self.availability, new, damping)
        _damp(self.common, bounded.reshape(self.common.shape), damping)


def _damp(message: Floats, new: Floats, damping: float) -> None:
    """Mix the new message into the old one, in place; `new` is overwritten."""
    if damping == 0.5:  # exact, so that one multiplication does for two
        message += new
        message *= damping
    else:
        message *= damping
        new *= 1 - damping
        message += new
