"""The team that a search asks: it puts questions to workers, wherever they are, and adds what they report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ekgsearch.bank.commit import MissingBlock
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.methods.base import BatchResult, Candidate, Evaluation, GroupScores, sum_over_batches
from ekgsearch.methods.evaluate import evaluations
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.ledger import Clock
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Begin, Evaluate, Extend, Question, Scores, Settle
from ekgsearch.workers.spec import BuiltBlock, SearchSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOrder:
    """A memory bank to be built.

    Attributes:
        spec: what it is made of.
        teachers: the sub-networks, the one of the lowest loss first.
        missing: blocks that some columns lack, and which.
        uri: where it is stored.
    """

    spec: BankSpec
    teachers: tuple[Subnetwork, ...]
    missing: tuple[MissingBlock, ...]
    uri: str


class Crew(Protocol):
    """The workers of a team: one in this process, or several elsewhere. Together they own every batch once."""

    def ask(self, question: Question, inbox: Inbox, interim: Sequence[Subnetwork]) -> None:
        """Put a question to all workers and hand their reports to the inbox until none is missing.

        Args:
            question: what to ask.
            inbox: takes the reports; it has been told the question.
            interim: networks whose logits are in the ensemble knowledge when the question is asked.
        """
        ...

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        """Build all that is missing; `on_block` is told of each block as it is stored."""
        ...

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        ...


class Team:
    """Evaluates networks on the search subset (the `Evaluator` of a search) and builds the memory bank.

    The answers are those of one worker, whatever the number and the fate of the workers: a batch is never split, every
    report counts once, and the sums of the batches are added in batch order.
    """

    def __init__(self, crew: Crew, spec: SearchSpec) -> None:
        self._crew = crew
        self._nominal_batch = spec.nominal_batch
        self._inbox = Inbox(spec.run, [index for index, _ in spec.batches])
        self._interim: list[Subnetwork] = []
        self._iteration = 0

    @property
    def inbox(self) -> Inbox:
        """The accounts of all reports."""
        return self._inbox

    def charge(self, clock: Clock) -> None:
        """Report the work done from now on to this clock."""
        self._crew.charge(clock)

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """Set the ensemble knowledge to the mean logits of these networks; return the evaluation of the last one."""
        self._interim = []
        self._iteration = len(interim) - 1
        self._ask(Begin(iteration=self._iteration, interim=tuple(interim)))
        self._interim = list(interim)
        return evaluations(self._inbox.results(), 1, self._nominal_batch)[0]

    def extend(self, networks: Sequence[Subnetwork]) -> None:
        """Average the logits of further networks, at least one, into the ensemble knowledge."""
        self._iteration = len(self._interim) + len(networks) - 1
        self._ask(Extend(iteration=self._iteration, networks=tuple(networks)))
        self._interim += networks

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Importance of every channel; the first question of an iteration.

        Args:
            current: the network that stands; its logits enter the ensemble knowledge, unless they are in it already.
            count: networks in the ensemble knowledge, this one included.
        """
        self._iteration = count
        if count > len(self._interim):
            self._interim.append(current)
        self._ask(Scores(iteration=self._iteration, current=current, count=count))
        return sum_over_batches(self._inbox.scores())

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates in their order."""
        self._ask(Evaluate(iteration=self._iteration, current=current, candidates=tuple(candidates)))
        return evaluations(self._inbox.results(), len(candidates), self._nominal_batch)

    def evaluate_on(
        self, current: Subnetwork, candidates: Sequence[Candidate], batches: Sequence[int]
    ) -> dict[int, list[BatchResult]]:
        """Results of candidates on some of the batches, in the order of the candidates, by batch index."""
        asked = Evaluate(iteration=self._iteration, current=current, candidates=tuple(candidates), only=tuple(batches))
        self._ask(asked)
        return self._inbox.results()

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates that nearly tie by the masked network."""
        self._ask(Settle(iteration=self._iteration, candidates=tuple(candidates)))
        return evaluations(self._inbox.results(), len(candidates), self._nominal_batch)

    def build_bank(self, order: BankOrder, on_block: Callable[[BuiltBlock], None]) -> None:
        """Build all that is missing; `on_block` is told of each block as it is stored."""
        self._crew.build_bank(order, on_block)

    def _ask(self, question: Question) -> None:
        """Put a question to the crew; the inbox then holds all answers.

        Raises:
            WorkerError: some are missing.
        """
        self._inbox.ask(question)
        self._crew.ask(question, self._inbox, self._interim)
        self._inbox.require_all()
