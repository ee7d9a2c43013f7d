"""Evaluate networks on fixed batches of the search subset, sharing what candidates have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.maths.knowledge import add_to_mean, cross_entropy_terms, is_correct
from ekgsearch.records import Subnetwork
from ekgsearch.search.base import (
    BatchResult,
    Candidate,
    Evaluation,
    GroupScores,
    mean_over_batches,
)


@dataclass(frozen=True, slots=True)
class SearchBatch:
    """One indivisible batch of the search subset.

    Attributes:
        index: its place among all batches; results are added in this order.
        images: (B, 3, H, W) float32, normalised, not augmented.
        labels: (B,) int64.
    """

    index: int
    images: Tensor
    labels: Tensor


class BatchEvaluator:
    """Evaluates on the batches that one worker owns, and holds the ensemble knowledge of their images.

    Batch normalisation uses batch statistics throughout, weights and running statistics never change. With
    `reuse_prefix` the current network runs once per batch and every candidate starts at the first step that its
    channel group touches: the same operations on the same tensors, hence the same bits, at roughly half the cost.
    Without it every candidate runs from the images on; that is the reference path.

    Args:
        masked: the masked network.
        batches: the batches that this evaluator owns.
        divisor: what the summed score is divided by before its gradient is taken: the images of the whole search
            subset, or the nominal batch size (quirk `nominal_batch_means`).
        reuse_prefix: whether candidates share the steps before their channel group.
    """

    def __init__(
        self, masked: MaskedNetwork, batches: Sequence[SearchBatch], divisor: int, *, reuse_prefix: bool = True
    ) -> None:
        self._masked = masked
        self._batches = sorted(batches, key=lambda batch: batch.index)
        self._divisor = divisor
        self._reuse_prefix = reuse_prefix
        self._knowledge: dict[int, Tensor] = {}
        self._count = 0
        self._candidate_logits: dict[int, list[Tensor]] = {}

    @property
    def num_averaged(self) -> int:
        """Networks whose logits are in the ensemble knowledge."""
        return self._count

    def knowledge(self, batch: int) -> Tensor:
        """Ensemble knowledge T of one batch: mean logits so far, (B, classes) float64."""
        return self._knowledge[batch]

    def set_knowledge(self, by_batch: Mapping[int, Tensor], count: int) -> None:
        """Replace the ensemble knowledge by a given one, to repeat decisions that were recorded elsewhere.

        Args:
            by_batch: mean logits of every batch that this evaluator owns, (B, classes), by batch index.
            count: networks in this mean.
        """
        self._knowledge = {batch.index: by_batch[batch.index].double() for batch in self._batches}
        self._count = count

    def begin(self, history: Sequence[Subnetwork]) -> dict[int, BatchResult]:
        """Average the logits of these networks; return the results of the last one by batch index."""
        results = {}
        for batch in self._batches:
            for count, subnetwork in enumerate(history):
                logits = self._masked.forward(batch.images, subnetwork, norm_mode="batch")
                mean = logits.double() if count == 0 else add_to_mean(self._knowledge[batch.index], count, logits)
                self._knowledge[batch.index] = mean
            results[batch.index] = self._result(batch, logits)
        self._count = len(history)
        return results

    def scores(self, current: Subnetwork) -> dict[int, GroupScores]:
        """Channel scores of the current network by batch index."""
        scores = {}
        for batch in self._batches:
            by_group = self._masked.scores(batch.images, self._mean_score(batch), current)
            scores[batch.index] = {group: values.cpu().numpy() for group, values in by_group.items()}
        return scores

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> dict[int, list[BatchResult]]:
        """Results of the candidates, in their order, by batch index; their logits are kept for `commit`."""
        self._candidate_logits = {}
        for batch in self._batches:
            run = self._from_prefix if self._reuse_prefix else self._from_images
            self._candidate_logits[batch.index] = run(batch, current, candidates)
        return {
            batch.index: [self._result(batch, logits) for logits in self._candidate_logits[batch.index]]
            for batch in self._batches
        }

    def commit(self, winner: int) -> None:
        """Average the logits of one candidate of the last `evaluate` call into the ensemble knowledge."""
        for index, logits in self._candidate_logits.items():
            self._knowledge[index] = add_to_mean(self._knowledge[index], self._count, logits[winner])
        self._count += 1
        self._candidate_logits = {}

    def _from_images(self, batch: SearchBatch, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Tensor]:
        return [self._masked.forward(batch.images, candidate.subnetwork, norm_mode="batch") for candidate in candidates]

    @torch.no_grad()
    def _from_prefix(self, batch: SearchBatch, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Tensor]:
        """Run the current network once, keeping what each candidate starts from; then only what differs."""
        masked, images = self._masked, batch.images
        weights, masks = masked.weights(current), masked.masks(current)
        starts = [masked.first_step(candidate.group) for candidate in candidates]
        needed = frozenset[str]().union(*(masked.live_at(start) for start in set(starts)))
        _, values = masked.run(images, weights, masks, keep=needed)
        logits = []
        for candidate, start in zip(candidates, starts, strict=True):
            changed = (candidate.group,)
            candidate_weights = {**weights, **masked.weights(candidate.subnetwork, groups=changed)}
            candidate_masks = {**masks, **masked.masks(candidate.subnetwork, groups=changed)}
            output, _ = masked.run(images, candidate_weights, candidate_masks, start=start, values=values)
            logits.append(output)
        return logits

    def _mean_score(self, batch: SearchBatch) -> Callable[[Tensor], Tensor]:
        knowledge = self._knowledge[batch.index]

        def score(logits: Tensor) -> Tensor:
            to_label, to_ensemble = cross_entropy_terms(logits, batch.labels, knowledge.to(logits.dtype))
            return (to_label + to_ensemble).sum() / self._divisor

        return score

    def _result(self, batch: SearchBatch, logits: Tensor) -> BatchResult:
        to_label, to_ensemble = cross_entropy_terms(logits.double(), batch.labels, self._knowledge[batch.index])
        return BatchResult(
            images=len(batch.labels),
            correct=int(is_correct(logits, batch.labels).sum()),
            loss_sum=float(to_label.sum()),
            score_sum=float((to_label + to_ensemble).sum()),
        )


def evaluations(
    by_batch: dict[int, list[BatchResult]], num_candidates: int, nominal_batch: int | None = None
) -> list[Evaluation]:
    """Turn the results of every batch, each a list over candidates, into one evaluation per candidate."""
    return [
        mean_over_batches({batch: results[position] for batch, results in by_batch.items()}, nominal_batch)
        for position in range(num_candidates)
    ]
