"""Decisions of a search, and its questions to the evaluator of its candidates."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
    rate: Fraction

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


@dataclass(frozen=True, slots=True)
class Decision:
    """One committed iteration of a search.

    Attributes:
        iteration: from 1; 0 is the unpruned network.
        group: the channel group that was cut; empty in iteration 0.
        changed: channel groups that keep other channels than before: the one that was cut, and with the quirk
            `rank_removed_channels` others whose dead channels changed places.
        subnetwork: the interim sub-network that now stands.
        rate: width of the cut channel group as the step rule tracks it.
        threshold: trimmed Otsu threshold; None where all channel groups were tried.
        evaluation: of the interim sub-network.
        macs, params: its costs under the job's counter.
        candidates: all that were tried, in order of their channel groups.
    """

    iteration: int
    group: str
    changed: tuple[str, ...]
    subnetwork: Subnetwork
    rate: Fraction
    threshold: float | None
    evaluation: Evaluation
    macs: int
    params: int
    candidates: tuple[CandidateOutcome, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Fields of the journal line; floats keep all their digits, a non-finite number becomes null."""
        return {
            "iteration": self.iteration,
            "group": self.group,
            "kept": {name: list(self.subnetwork[name]) for name in self.changed},
            "rate": str(self.rate),
            "threshold": self.threshold,
            **_numbers(self.evaluation),
            "macs": self.macs,
            "params": self.params,
            "subnetwork": self.subnetwork.sha256,
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
        }


def decisions_from_records(records: Iterable[Mapping[str, Any]], full: Subnetwork) -> list[Decision]:
    """Rebuild decisions from their journal lines, starting from the unpruned network."""
    decisions: list[Decision] = []
    for record in records:
        decisions.append(decision_from_record(record, decisions[-1].subnetwork if decisions else full))
    return decisions


def decision_from_record(record: Mapping[str, Any], current: Subnetwork) -> Decision:
    """Rebuild a decision from its journal line.

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
        record["iteration"],
        record["group"],
        tuple(record["kept"]),
        current,
        Fraction(record["rate"]),
        record["threshold"],
        _evaluation(record),
        record["macs"],
        record["params"],
        outcomes,
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
