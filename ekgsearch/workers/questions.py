"""Questions to the workers of a search, and their answers: values that cross from process to process."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ekgsearch.methods.base import BatchResult, Candidate, GroupScores
from ekgsearch.records import Subnetwork

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
class _Call:
    """One call to the owners of the batches that it is about.

    Attributes:
        name: the call in the keys of its reports.
        iteration: of the search; 0 is the unpruned network.
    """

    name: ClassVar[str]
    iteration: int

    @property
    def answers_per_batch(self) -> int:
        """Values that each batch is answered with."""
        return 1

    @property
    def batches(self) -> tuple[int, ...] | None:
        """The batches that it is about, whose owners alone are asked; None for all."""
        return None

    def concerns(self, owned: Iterable[int]) -> bool:
        """Whether it is about one of these batches."""
        return any(self.batches is None or batch in self.batches for batch in owned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(_Call):
    """Set the ensemble knowledge to the mean logits of networks; answered with the sums of the last one.

    Attributes:
        interim: the networks, at least one.
    """

    name = "begin"
    interim: tuple[Subnetwork, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(_Call):
    """Average the logits of further networks into the ensemble knowledge; answered with the sums of the last one.

    Attributes:
        networks: the networks, at least one.
    """

    name = "extend"
    networks: tuple[Subnetwork, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(_Call):
    """Average the current network into the ensemble knowledge, if it is not in yet; answered with its channel scores.

    Attributes:
        current: the network that stands.
        count: networks in the ensemble knowledge, this one included.
    """

    name = "scores"
    current: Subnetwork
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfCandidates(_Call):
    """A call that is answered with the sums of candidates, in their order.

    Attributes:
        candidates: what is evaluated.
    """

    candidates: tuple[Candidate, ...]

    @property
    def answers_per_batch(self) -> int:
        """Values that each batch is answered with."""
        return len(self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate(_OfCandidates):
    """Evaluate candidates, on some of the batches where it says so.

    Attributes:
        current: the network that stands; each candidate differs from it in one channel group.
        only: the batches that it is about; None for all.
    """

    name = "evaluate"
    current: Subnetwork
    only: tuple[int, ...] | None = None

    @property
    def batches(self) -> tuple[int, ...] | None:
        """The batches that it is about, whose owners alone are asked; None for all."""
        return self.only


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(_OfCandidates):
    """Evaluate candidates that nearly tie by the masked network."""

    name = "settle"


Question = Begin | Extend | Scores | Evaluate | Settle
"""What the workers of a search are asked."""


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
