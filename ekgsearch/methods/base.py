"""Decisions of a search, and its questions to the evaluator of its candidates."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.methods.budget import Budget
from ekgsearch.records import Subnetwork

GroupScores = dict[str, NDArray[np.float64]]
"""Importance of every channel, (size,) float64 by channel group name."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The current sub-network with one channel group cut further.

    Attributes:
        group: the channel group that is cut.
        subnetwork: the whole sub-network that results.
        rate: width of this channel group after the cut, as the share that the step rule tracks, 0..1.
    """

    group: str
    subnetwork: Subnetwork
    rate: Fraction = Fraction(1)

    @property
    def num_kept(self) -> int:
        """Channels that the cut channel group keeps."""
        return len(self.subnetwork[self.group])


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Sums of one network over one batch of the search subset."""

    images: int
    correct: int
    loss_sum: float
    score_sum: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means of one network over the whole search subset (batch statistics); nats per image.

    Attributes:
        loss: cross-entropy to the labels.
        score: loss + cross-entropy to the ensemble knowledge; the reward is its negative.
        correct: images classified correctly.
        images: images of the search subset; fewer where a race dropped the candidate.
    """

    loss: float
    score: float
    correct: int
    images: int

    @property
    def is_finite(self) -> bool:
        """Whether both means are numbers; a candidate without is recorded but cannot win."""
        return math.isfinite(self.loss) and math.isfinite(self.score)


class Evaluator(Protocol):
    """Evaluates networks on the search subset and holds the ensemble knowledge.

    The unit of distribution is the batch: batch statistics make a batch indivisible, and adding its float64 sums in
    batch order makes every answer independent of how many workers hold the batches.
    """

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """Set the ensemble knowledge to the mean logits of these networks; return the evaluation of the last one."""
        ...

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Importance of every channel of every channel group under the current masks and ensemble knowledge.

        Args:
            current: the network that stands; its logits enter the ensemble knowledge, unless they are in it already.
            count: networks in the ensemble knowledge, this one included.
        """
        ...

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates, each of which differs from `current` in one channel group; answers in their order."""
        ...

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluate candidates whose scores nearly tie once more, by the masked network; answers in their order."""
        ...


class BatchwiseEvaluator(Evaluator, Protocol):
    """An evaluator that also evaluates on some of the batches only."""

    def evaluate_on(
        self, current: Subnetwork, candidates: Sequence[Candidate], batches: Sequence[int]
    ) -> Mapping[int, Sequence[BatchResult]]:
        """Results of candidates on these batches, in the order of the candidates, by batch index."""
        ...


def eligible(evaluations: Sequence[Evaluation]) -> list[int]:
    """Positions of the candidates that can win: with finite means, over as many images as any other."""
    most = max((evaluation.images for evaluation in evaluations), default=0)
    return [
        position
        for position, evaluation in enumerate(evaluations)
        if evaluation.is_finite and evaluation.images == most
    ]


def mean_over_batches(results: Mapping[int, BatchResult], nominal_batch: int | None = None) -> Evaluation:
    """Add the sums of all batches in batch order and divide by the number of images.

    Args:
        results: by batch index.
        nominal_batch: count every batch as so many images (quirk `nominal_batch_means`); None for the true number.
    """
    ordered = [results[batch] for batch in sorted(results)]
    images = sum(result.images for result in ordered)
    divisor = images if nominal_batch is None else nominal_batch * len(ordered)
    loss = score = 0.0
    for result in ordered:
        loss += result.loss_sum
        score += result.score_sum
    return Evaluation(loss / divisor, score / divisor, sum(result.correct for result in ordered), images)


def sum_over_batches(scores: Mapping[int, GroupScores]) -> GroupScores:
    """Add per-batch channel scores in batch order."""
    ordered = [scores[batch] for batch in sorted(scores)]
    total = {group: values.copy() for group, values in ordered[0].items()}
    for batch_scores in ordered[1:]:
        for group, values in batch_scores.items():
            total[group] += values
    return total


@dataclass(frozen=True, slots=True)
class CandidateOutcome:
    """What became of one candidate: enough for a table row."""

    group: str
    num_kept: int
    macs: int
    params: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One committed iteration of a search.

    Attributes:
        iteration: from 1; 0 is the unpruned network.
        group: the channel group that was cut; empty in iteration 0, and where several were cut at once.
        changed: channel groups that keep other channels than before.
        subnetwork: the interim sub-network that now stands.
        macs, params: its costs under the job's counter.
        evaluation: of the interim sub-network; None where the method evaluates none.
        candidates: all that were tried, in order of their channel groups; none where the method tries none.
        own: what else the method records, JSON values by names that are not those above.
    """

    iteration: int
    group: str
    changed: tuple[str, ...]
    subnetwork: Subnetwork
    macs: int
    params: int
    evaluation: Evaluation | None = None
    candidates: tuple[CandidateOutcome, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Fields of the journal line; floats keep all their digits, a non-finite number becomes null."""
        return {
            "iteration": self.iteration,
            "group": self.group,
            "kept": {name: list(self.subnetwork[name]) for name in self.changed},
            "macs": self.macs,
            "params": self.params,
            "subnetwork": self.subnetwork.sha256,
            **({} if self.evaluation is None else _numbers(self.evaluation)),
            "candidates": [
                {
                    "group": outcome.group,
                    "num_kept": outcome.num_kept,
                    "macs": outcome.macs,
                    "params": outcome.params,
                    **_numbers(outcome.evaluation),
                }
                for outcome in self.candidates
            ],
            **self.own,
        }


_COMMON = frozenset({"iteration", "group", "kept", "macs", "params", "subnetwork", "candidates"})
_NUMBERS = frozenset({"loss", "score", "correct", "images"})


def decisions_from_records(records: Iterable[Mapping[str, Any]], full: Subnetwork) -> list[Decision]:
    """Rebuild decisions from their journal lines, starting from the unpruned network."""
    decisions: list[Decision] = []
    for record in records:
        decisions.append(decision_from_record(record, decisions[-1].subnetwork if decisions else full))
    return decisions


def decision_from_record(record: Mapping[str, Any], current: Subnetwork) -> Decision:
    """Rebuild a decision from the fields of its journal line, without those that every line has.

    Args:
        record: fields of the line.
        current: the sub-network before the decision; the unpruned one for the first.
    """
    for name, kept in record["kept"].items():
        current = current.replace(name, kept)
    outcomes = tuple(
        CandidateOutcome(line["group"], line["num_kept"], line["macs"], line["params"], _evaluation(line))
        for line in record["candidates"]
    )
    return Decision(
        iteration=record["iteration"],
        group=record["group"],
        changed=tuple(record["kept"]),
        subnetwork=current,
        macs=record["macs"],
        params=record["params"],
        evaluation=_evaluation(record) if record.keys() >= _NUMBERS else None,
        candidates=outcomes,
        own={name: value for name, value in record.items() if name not in _COMMON | _NUMBERS},
    )


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "loss": evaluation.loss if math.isfinite(evaluation.loss) else None,
        "score": evaluation.score if math.isfinite(evaluation.score) else None,
        "correct": evaluation.correct,
        "images": evaluation.images,
    }


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    loss, score = (math.nan if record[name] is None else float(record[name]) for name in ("loss", "score"))
    return Evaluation(loss, score, record["correct"], record["images"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Materials:
    """What a search works with.

    Attributes:
        graph: channel groups of the network; its weights may be other ones than the search starts from.
        open_graph: opens the same network with the weights that the search starts from.
        budget: what to meet; without a limit where the method decides how much goes.
        seed: of random choices.
        threads: what a search may compute with in this process.
        evaluator: starts the workers, for a method that needs them.
        groups: channel groups that may be cut.
        batches: indices of the batches that the workers hold.
        tie_tolerance: share of the lowest score within which the evaluator's rounding could decide.
        betas: for a method that makes teachers on request, what they are made with, ascending.
    """

    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    open_graph: Callable[[], ChannelGraph]
    budget: Budget
    seed: int
    threads: int
    evaluator: Callable[[], BatchwiseEvaluator]
    batches: Sequence[int]
    tie_tolerance: float
    betas: tuple[float, ...] = ()

    def costs(self, subnetwork: Subnetwork) -> tuple[int, int]:
        """Multiply-accumulates and parameters of a sub-network under the counter of the budget."""
        costs = cost(self.graph, subnetwork, self.budget.counter)
        return costs.macs, costs.params


class Search(Protocol):
    """The search of a method, opened for one network and budget."""

    def run(self, made: Sequence[Decision] = ()) -> Iterator[Decision]:
        """Yield every decision as it is made; decision 0 is the unpruned network.

        Args:
            made: decisions already committed, to continue from.
        """
        ...

    def is_over(self, made: Sequence[Decision]) -> bool:
        """Whether these decisions are all."""
        ...

    def depends_on_budget(self, made: Sequence[Decision]) -> bool:
        """Whether the decision after these may depend on how much is to be removed."""
        ...

    def slim(self, graph: ChannelGraph, subnetwork: Subnetwork) -> nn.Module:
        """The slim network that fine-tuning starts from.

        Args:
            graph: the network with the weights that the search started from; they may be changed.
            subnetwork: what stays.
        """
        ...


@runtime_checkable
class Repeats(Search, Protocol):
    """A search of which any decision can be made once more, by another evaluator."""

    def decide_after(self, made: Sequence[Decision]) -> Decision:
        """The decision that follows from these; the evaluator holds the ensemble knowledge of all but the last."""
        ...
