"""Contest of the evaluated candidates of one iteration: by their scores, or by what a rise of the score saves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ekgsearch.errors import NumericsError
from ekgsearch.methods.base import Evaluation, eligible


@dataclass(frozen=True, slots=True)
class Contest:
    """The candidates of one iteration.

    Attributes:
        evaluations: of the candidates, in their order.
        tolerance: share of a score within which the evaluator's rounding could decide; 0 for none.
        shares: shares of the unpruned network's cost that the candidates save, above 0; None where the score alone
            counts.
        standing: score of the network that they are cut from, by the same ensemble knowledge; not used without shares.
    """

    evaluations: Sequence[Evaluation]
    tolerance: float
    shares: Sequence[float] | None = None
    standing: float = 0.0

    def near_ties(self) -> list[int]:
        """Positions of the candidates among which rounding could decide; empty where it cannot."""
        running = eligible(self.evaluations)
        if self.tolerance == 0 or len(running) < 2:
            return []
        limit = min(self._place(position, above=True) for position in running)
        near = [position for position in running if self._place(position)[0] <= limit[0]]
        return near if len(near) > 1 else []

    def settled(self, near: Sequence[int], evaluations: Sequence[Evaluation]) -> "Contest":
        """The same contest with exact evaluations of those that nearly tie."""
        found = list(self.evaluations)
        for position, evaluation in zip(near, evaluations, strict=True):
            found[position] = evaluation
        return replace(self, evaluations=found)

    def winner(self, among: Sequence[int], iteration: int) -> int:
        """Position of the candidate that wins, the first at a tie.

        Near ties that were settled are compared with each other only: an approximate evaluation may lie lower.

        Args:
            among: positions that can win; none for all that have seen all images.
            iteration: of the search, for the message.

        Raises:
            NumericsError: no candidate has a finite loss.
        """
        running = [at for at in among or eligible(self.evaluations) if self.evaluations[at].is_finite]
        if not running:
            raise NumericsError(
                f"all {len(self.evaluations)} candidates of iteration {iteration} have a loss that is not a finite "
                "number; check the weights and the input normalisation"
            )
        return min(running, key=self._place)

    def _place(self, position: int, above: bool = False) -> tuple[float, float]:
        """What candidates are ordered by, the lowest first; at the upper end of its rounding where `above`.

        A score that does not rise costs nothing: of such candidates the one that saves most comes first, since a tiny
        fall divided by a tiny share would say nothing.
        """
        score = self.evaluations[position].score
        score += abs(score) * self.tolerance if above else 0.0
        if self.shares is None:
            return score, 0.0
        rise = max(0.0, score - self.standing) if math.isfinite(score) else math.inf
        return rise / self.shares[position], -self.shares[position]
