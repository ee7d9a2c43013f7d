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
    """

    def __init__(self, parts: Sequence[BatchEvaluator]) -> None:
        self.parts = parts

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """See `Evaluator.begin`."""
        return mean_over_batches(_merged(part.begin(interim) for part in self.parts))

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """See `Evaluator.scores`."""
        return sum_over_batches(_merged(part.scores(current, count) for part in self.parts))

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """See `Evaluator.evaluate`."""
        return evaluations(_merged(part.evaluate(current, candidates) for part in self.parts), len(candidates))

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """See `Evaluator.settle`."""
        return evaluations(_merged(part.settle(candidates) for part in self.parts), len(candidates))

    def evaluate_on(
        self, current: Subnetwork, candidates: Sequence[Candidate], batches: Sequence[int]
    ) -> Mapping[int, Sequence[BatchResult]]:
        """See `BatchwiseEvaluator.evaluate_on`."""
        return _merged(part.evaluate(current, candidates, batches) for part in self.parts)


def _merged(answers: Iterable[Mapping[int, Value]]) -> dict[int, Value]:
    return {batch: value for answer in answers for batch, value in answer.items()}
