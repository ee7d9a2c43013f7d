"""Evaluator of a search in this process."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ekgsearch.methods.base import (
    BatchResult,
    Candidate,
    Evaluation,
    GroupScores,
    mean_over_batches,
    sum_over_batches,
)
from ekgsearch.methods.evaluate import BatchEvaluator, evaluations
from ekgsearch.records import Subnetwork

Value = TypeVar("Value")


class LocalEvaluator:
    """Asks evaluators of this process that own different batches, and adds up what they answer.

    Args:
        parts: the evaluators; usually one that owns all batches.
        nominal_batch: count every batch as so many images (quirk `nominal_batch_means`); None for the true number.
    """

    def __init__(self, parts: Sequence[BatchEvaluator], nominal_batch: int | None = None) -> None:
        self.parts = parts
        self._nominal_batch = nominal_batch

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """See `Evaluator.begin`."""
        return mean_over_batches(_merged(part.begin(interim) for part in self.parts), self._nominal_batch)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """See `Evaluator.scores`."""
        return sum_over_batches(_merged(part.scores(current, count) for part in self.parts))

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """See `Evaluator.evaluate`."""
        found = _merged(part.evaluate(current, candidates) for part in self.parts)
        return evaluations(found, len(candidates), self._nominal_batch)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """See `Evaluator.settle`."""
        found = _merged(part.settle(candidates) for part in self.parts)
        return evaluations(found, len(candidates), self._nominal_batch)

    def evaluate_on(
        self, current: Subnetwork, candidates: Sequence[Candidate], batches: Sequence[int]
    ) -> Mapping[int, Sequence[BatchResult]]:
        """See `BatchwiseEvaluator.evaluate_on`."""
        return _merged(part.evaluate(current, candidates, batches) for part in self.parts)


def _merged(answers: Iterable[Mapping[int, Value]]) -> dict[int, Value]:
    return {batch: value for answer in answers for batch, value in answer.items()}
