"""Which reports of the workers count: each once, and none of a worker that was replaced."""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ekgsearch.errors import WorkerError
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


class Inbox:
    """Accounts for the reports of one run, in whatever order and however often they come.

    An equal duplicate is dropped, a different one stops the run. A report of an earlier attempt at its batch, by a
    worker that was given up and replaced, is dropped whatever it says.

    Args:
        run: name of the run; reports of another one stop it.
        batches: all batches of the search subset.

    Attributes:
        num_duplicates: equal reports that were dropped.
        num_late: reports of replaced workers that were dropped.
    """

    def __init__(self, run: str, batches: Sequence[int]) -> None:
        self.run = run
        self.num_duplicates = 0
        self.num_late = 0
        self._attempts = dict.fromkeys(batches, 1)
        self._digests: dict[tuple[int, str], dict[tuple[int, int], bytes]] = {}
        self._asked: Question | None = None
        self._values: dict[int, dict[int, Value]] = {}

    def ask(self, question: Question) -> None:
        """Wait for the answers to a question; asking it again forgets those before on the same batches."""
        self._asked = question
        self._values = {batch: {} for batch in self._attempts if question.concerns([batch])}
        digests = self._digests.get((question.iteration, question.name), {})
        kept = {place: digest for place, digest in digests.items() if place[0] not in self._values}
        self._digests[question.iteration, question.name] = kept

    def expect(self, batches: Sequence[int], attempt: int) -> None:
        """Expect the reports on some batches from this attempt on.

        What earlier attempts have reported stays; what they report from now on is dropped.
        """
        self._attempts |= dict.fromkeys(batches, attempt)

    def take(self, key: ReportKey, value: Value) -> bool:
        """Account for one report.

        Returns:
            Whether it counts; False for an equal duplicate and for a report of an earlier attempt.

        Raises:
            WorkerError: it differs from an earlier one of the same key, or nobody asked for it.
        """
        current = self._attempts.get(key.batch)
        if key.run != self.run or current is None or key.attempt > current:
            raise WorkerError(
                f"a worker reported ({key}), which nobody asked for: this is run {self.run}, attempt {current} at this "
                "batch; see that no other driver uses its workers, then run the same command again"
            )
        if key.attempt < current:
            self.num_late += 1
            return False
        digest = _digest(value)
        seen = self._digests.get((key.iteration, key.question), {})
        known = seen.get((key.batch, key.candidate))
        if known == digest:
            self.num_duplicates += 1
            return False
        if known is not None:
            raise WorkerError(
                f"two reports of ({key}) differ: the same question to the same network and batch gave two answers. "
                "What is committed is kept: look for damaged memory or for nodes with other hardware or versions, "
                "then run the same command again"
            )
        asked = self._asked
        is_asked = asked and (key.iteration, key.question) == (asked.iteration, asked.name)
        if asked is None or not is_asked or key.batch not in self._values:
            raise WorkerError(f"a worker reported ({key}), but nobody has asked this question")
        if not 0 <= key.candidate < asked.answers_per_batch:
            raise WorkerError(f"a worker reported ({key}), but there are {asked.answers_per_batch} candidates")
        seen[key.batch, key.candidate] = digest
        self._values[key.batch][key.candidate] = value
        return True

    @property
    def missing(self) -> tuple[int, ...]:
        """Batches whose answers to the question are not complete, ascending."""
        wanted = self._asked.answers_per_batch if self._asked else 0
        return tuple(sorted(batch for batch, values in self._values.items() if len(values) < wanted))

    def answers(self) -> dict[int, list[Any]]:
        """The values of every batch in the order of the candidates, batches ascending.

        Raises:
            WorkerError: some are missing.
        """
        if self.missing:
            raise WorkerError(f"the workers left batches {list(self.missing)} without an answer")
        return {batch: [values[place] for place in sorted(values)] for batch, values in sorted(self._values.items())}


def _digest(value: Value) -> bytes:
    """Hash of the bits of a value, so that a NaN equals itself."""
    hasher = hashlib.blake2b(digest_size=16)
    if isinstance(value, BatchResult):
        hasher.update(struct.pack("<qqdd", value.images, value.correct, value.loss_sum, value.score_sum))
    else:
        for group, scores in sorted(value.items()):
            hasher.update(group.encode() + b"\0" + str(scores.shape).encode() + scores.tobytes())
    return hasher.digest()
