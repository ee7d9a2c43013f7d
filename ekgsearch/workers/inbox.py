"""Accounts of the reports of workers: each counts once, and none of a worker that was replaced."""

import hashlib
import struct
from collections.abc import Sequence

from ekgsearch.errors import WorkerError
from ekgsearch.methods.base import BatchResult, GroupScores
from ekgsearch.workers.questions import Question, ReportKey, Value


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

    def require_all(self) -> None:
        """Check that the question is answered.

        Raises:
            WorkerError: the answers on some batches are missing.
        """
        if self.missing:
            raise WorkerError(f"the workers left batches {list(self.missing)} without an answer")

    def results(self) -> dict[int, list[BatchResult]]:
        """The sums of every batch in the order of the candidates, batches ascending.

        Raises:
            WorkerError: some are missing.
        """
        return {batch: [_sums(value) for value in values] for batch, values in self._ordered()}

    def scores(self) -> dict[int, GroupScores]:
        """The channel scores of every batch, batches ascending.

        Raises:
            WorkerError: some are missing.
        """
        return {batch: _channel_scores(value) for batch, (value,) in self._ordered()}

    def _ordered(self) -> list[tuple[int, list[Value]]]:
        self.require_all()
        return [(batch, [values[place] for place in sorted(values)]) for batch, values in sorted(self._values.items())]


def _sums(value: Value) -> BatchResult:
    assert isinstance(value, BatchResult), "a question about networks is answered with sums"
    return value


def _channel_scores(value: Value) -> GroupScores:
    assert isinstance(value, dict), "a question about channels is answered with their scores"
    return value


def _digest(value: Value) -> bytes:
    """Hash of the bits of a value, so that a NaN equals itself."""
    hasher = hashlib.blake2b(digest_size=16)
    if isinstance(value, BatchResult):
        hasher.update(struct.pack("<qqdd", value.images, value.correct, value.loss_sum, value.score_sum))
    else:
        for group, scores in sorted(value.items()):
            hasher.update(group.encode() + b"\0" + str(scores.shape).encode() + scores.tobytes())
    return hasher.digest()
