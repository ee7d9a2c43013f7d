"""Questions to the workers of a search, and their answers: values that cross from process to process."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ekgsearch.search.base import BatchResult, GroupScores

Value = BatchResult | GroupScores
"""What is reported on one batch: sums of one network, or channel scores."""


class ReportKey(NamedTuple):
    """What one report is about.

    Attributes:
        run: the run that asked.
        iteration: of the search; 0 is the unpruned network.
        question: which call of the iteration it answers, such as `scores`.
        batch: index of the batch.
        candidate: position of the candidate; 0 where the question has one answer per batch.
        attempt: how many workers have owned the batch before this one, plus 1.
    """

    run: str
    iteration: int
    question: str
    batch: int
    candidate: int
    attempt: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._asdict().items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call to all workers.

    Attributes:
        name: method of the evaluator that every worker calls.
        iteration: of the search; 0 is the unpruned network.
        arguments: of the method.
        answers_per_batch: values that each batch is answered with.
        batches: those that it is about; None for all. Their owners alone are asked.
    """

    name: str
    iteration: int
    arguments: tuple[Any, ...]
    answers_per_batch: int = 1
    batches: tuple[int, ...] | None = None

    def concerns(self, owned: Iterable[int]) -> bool:
        """Whether it is about one of these batches."""
        return any(self.batches is None or batch in self.batches for batch in owned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one worker says to one question.

    Attributes:
        run, iteration, question, attempt: see `ReportKey`.
        values: for each batch of the worker its values, in the order of the candidates.
        busy_seconds: time that the work took.
    """

    run: str
    iteration: int
    question: str
    attempt: int
    values: Mapping[int, Sequence[Value]]
    busy_seconds: float

    def reports(self) -> Iterator[tuple[ReportKey, Value]]:
        """Every value with its key."""
        for batch, values in self.values.items():
            for candidate, value in enumerate(values):
                key = ReportKey(self.run, self.iteration, self.question, batch, candidate, self.attempt)
                yield key, value
