"""Evaluate candidates batch by batch, and drop those that cannot win any more: an approximation, off by default."""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ekgsearch.maths.racing import LEAST_BATCHES, error_of_one_test, looks, still_in
from ekgsearch.methods.base import (
    BatchResult,
    BatchwiseEvaluator,
    Candidate,
    Evaluation,
    GroupScores,
    mean_over_batches,
)
from ekgsearch.records import Subnetwork

log = logging.getLogger(__name__)


class Racing:
    """Evaluates candidates in rounds of batches; after each, those that are beyond doubt worse than the leader go.

    All candidates are evaluated on the first eighth of the batches, those that are left on the first quarter, half, and
    all of them. The images of a search subset are in random order, so that the first batches are a random sample. The
    decision depends on the batches alone, not on who owns them. A dropped candidate has seen fewer images and cannot
    win; the winner has seen all.

    Args:
        evaluator: evaluates on batches.
        batches: indices of all batches, in the order in which they are evaluated.
        error: probability that one decision loses the candidate that is best over all batches, 0..1.
        nominal_batch: count every batch as so many images (quirk `nominal_batch_means`); None for the true number.

    Attributes:
        num_evaluated: batches on which candidates were evaluated, summed over candidates.
        num_possible: what that would be without racing.
    """

    def __init__(
        self, evaluator: BatchwiseEvaluator, batches: Sequence[int], error: float, nominal_batch: int | None = None
    ) -> None:
        self._evaluator = evaluator
        self._batches = list(batches)
        self._error = error
        self._nominal_batch = nominal_batch
        self._looks = looks(len(batches))
        self.num_evaluated = 0
        self.num_possible = 0
        if not self._looks:
            log.warning(
                "search.racing needs more than %d batches, the search subset has %d: every candidate sees all images",
                LEAST_BATCHES,
                len(batches),
            )

    @property
    def share_evaluated(self) -> float:
        """Share of the candidates' batches that were evaluated, 0..1; 1 before the first race."""
        return self.num_evaluated / self.num_possible if self.num_possible else 1.0

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """Set the ensemble knowledge; see `Evaluator`."""
        return self._evaluator.begin(interim)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Importance of every channel; see `Evaluator`."""
        return self._evaluator.scores(current, count)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates that nearly tie once more; see `Evaluator`."""
        return self._evaluator.settle(candidates)

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Let candidates race; answers in their order, over fewer images where a candidate was dropped."""
        results: list[dict[int, BatchResult]] = [{} for _ in candidates]
        self.num_possible += len(candidates) * len(self._batches)
        running = list(range(len(candidates)))
        seen = 0
        while seen < len(self._batches) and running:
            is_over = len(running) == 1
            stop = next((look for look in self._looks if look > seen and not is_over), len(self._batches))
            self._run(current, candidates, results, running, self._batches[seen:stop])
            seen = stop
            if seen < len(self._batches):
                running = self._left(results, running, len(candidates))
        found = [self._mean(one) for one in results]
        if not any(found[position].is_finite for position in running):
            again = [position for position, evaluation in enumerate(found) if evaluation.is_finite]
            self._run(current, candidates, results, again, self._batches)  # the leader of a race broke down late in it
            found = [self._mean(one) for one in results]
        return found

    def _run(
        self,
        current: Subnetwork,
        candidates: Sequence[Candidate],
        results: list[dict[int, BatchResult]],
        running: Sequence[int],
        batches: Sequence[int],
    ) -> None:
        """Evaluate those that are running on these batches; `results` is extended."""
        if not running:
            return
        answers = self._evaluator.evaluate_on(current, [candidates[position] for position in running], batches)
        for batch, of_batch in answers.items():
            for position, result in zip(running, of_batch, strict=True):
                results[position][batch] = result
        self.num_evaluated += len(running) * len(batches)

    def _left(self, results: list[dict[int, BatchResult]], running: Sequence[int], num_candidates: int) -> list[int]:
        """Those that may still win."""
        finite = [position for position in running if self._mean(results[position]).is_finite]
        if len(finite) < 2:
            return finite
        batches = sorted(results[finite[0]])
        sums = np.array([[results[position][batch].score_sum for batch in batches] for position in finite])
        images = [self._nominal_batch or results[finite[0]][batch].images for batch in batches]
        error = error_of_one_test(self._error, num_candidates, len(self._looks))
        kept = still_in(sums, np.array(images, dtype=np.float64), len(self._batches), error)
        return [position for position, is_in in zip(finite, kept, strict=True) if is_in]

    def _mean(self, results: Mapping[int, BatchResult]) -> Evaluation:
        return mean_over_batches(results, self._nominal_batch) if results else Evaluation(math.nan, math.nan, 0, 0)
