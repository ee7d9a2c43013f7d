"""Evaluate networks on fixed batches of the search subset, sharing what candidates have in common."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ekgsearch.channels.sliced import Walk
from ekgsearch.errors import NumericsError
from ekgsearch.maths.knowledge import add_to_mean, cross_entropy_terms, is_correct
from ekgsearch.methods.base import BatchResult, Candidate, Evaluation, GroupScores, mean_over_batches
from ekgsearch.methods.criteria import channel_scores
from ekgsearch.methods.networks import Networks
from ekgsearch.methods.rules import PUBLISHED, Rules
from ekgsearch.records import Subnetwork

PREFIX_BYTES = 1_000_000_000
"""Default memory for what scoring computed and candidates start from; batches beyond it are walked through again."""


@dataclass(frozen=True, slots=True)
class SearchBatch:
    """One indivisible batch of the search subset.

    Attributes:
        index: its place among all batches; results are added in this order.
        pixels: (B, 3, H, W) uint8, not augmented.
        labels: (B,) int64.
    """

    index: int
    pixels: Tensor
    labels: Tensor


class BatchEvaluator:
    """Evaluates on the batches that one worker owns, and holds the ensemble knowledge of their images.

    Batch normalisation uses batch statistics throughout, weights and running statistics never change.

    Args:
        networks: runs sub-networks on a batch.
        normalise: maps pixels (B, 3, H, W) uint8 to the network's input.
        batches: the batches that this evaluator owns.
        divisor: what the summed score is divided by before its gradient is taken: the images of the whole search
            subset, or the nominal batch size (quirk `nominal_batch_means`).
        rules: importance criterion and teacher of the score.
        prefix_bytes: memory for what candidates can start from; it changes no result.
        check: called before each forward pass; raises to stop there.
    """

    def __init__(
        self,
        networks: Networks,
        normalise: Callable[[Tensor], Tensor],
        batches: Sequence[SearchBatch],
        divisor: int,
        rules: Rules = PUBLISHED,
        prefix_bytes: int = PREFIX_BYTES,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._networks = networks
        self._normalise = normalise
        self._batches = sorted(batches, key=lambda batch: batch.index)
        self._divisor = divisor
        self._rules = rules
        self._knowledge: dict[int, Tensor] = {}
        self._count = 0
        self._prefix_bytes = prefix_bytes
        self._check = check
        self._walked: Subnetwork | None = None
        self._walks: dict[int, Walk] = {}

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

    def begin(self, interim: Sequence[Subnetwork]) -> dict[int, BatchResult]:
        """Average the logits of these networks alone; return the results of the last one by batch index."""
        self._knowledge, self._count = {}, 0
        return self.extend(interim)

    def extend(self, networks: Sequence[Subnetwork]) -> dict[int, BatchResult]:
        """Average the logits of further networks, at least one; return the results of the last one by batch index."""
        results = {}
        for batch in self._batches:
            images = self._normalise(batch.pixels)
            for count, subnetwork in enumerate(networks, start=self._count):
                self._check()
                logits = self._networks.forward(images, subnetwork)
                mean = logits.double() if count == 0 else self._mean(self._knowledge[batch.index], count, logits)
                self._knowledge[batch.index] = mean
            results[batch.index] = self._results(batch, [logits])[0]
        self._count += len(networks)
        return results

    def scores(self, current: Subnetwork, count: int) -> dict[int, GroupScores]:
        """Average the current network into the ensemble knowledge, if it is not in yet, and score its channels.

        Scores that look at no image belong to batch 0; the other batches add zeros.

        The forward pass of the scores gives the logits, so that a winner is averaged in at no cost of its own. Asked
        again with the same count, the answer is the same.

        Args:
            current: the network that stands.
            count: networks in the ensemble knowledge, this one included.

        Returns:
            Channel scores by batch index.

        Raises:
            NumericsError: the ensemble knowledge holds neither `count` networks nor one fewer.
        """
        if count - self._count not in (0, 1):
            raise NumericsError(
                f"expected the ensemble knowledge of {count - 1} or {count} networks, found {self._count}; "
                "the worker has missed an iteration and must begin anew"
            )
        is_new = count == self._count + 1
        scores: dict[int, GroupScores] = {}
        knowledge = dict(self._knowledge)

        def mean_score(batch: SearchBatch, logits: Tensor) -> Tensor:
            if is_new:
                knowledge[batch.index] = self._mean(knowledge[batch.index], self._count, logits.detach())
            to_label, total = self._terms(batch, logits, knowledge[batch.index].to(logits.dtype))
            return (to_label if self._rules.criterion == "taylor_loss" else total).sum() / self._divisor

        if self._rules.needs_gradient:
            prepared = self._networks.prepare(current)
            self._walked, self._walks, free = current, {}, self._prefix_bytes
            for batch in self._batches:
                self._check()
                images, loss = self._normalise(batch.pixels), partial(mean_score, batch)
                by_group, walk = self._networks.scores(images, loss, prepared)
                scores[batch.index] = {group: values.numpy() for group, values in by_group.items()}
                if walk is not None and walk.num_bytes <= free:
                    free -= walk.num_bytes
                    self._walks[batch.index] = walk
                walk = None  # the next batch may need the memory of a walk that is not kept
        else:
            found = channel_scores(self._rules, self._networks.masked.graph, current, count)
            for batch in self._batches:
                self._check()
                mean_score(batch, self._networks.forward(self._normalise(batch.pixels), current))
                share = 1.0 if batch.index == 0 else 0.0
                scores[batch.index] = {group: share * values for group, values in found.items()}
        self._knowledge, self._count = knowledge, count
        return scores

    def evaluate(
        self, current: Subnetwork, candidates: Sequence[Candidate], batches: Collection[int] | None = None
    ) -> dict[int, list[BatchResult]]:
        """Results of the candidates, in their order, by batch index; on these batches only, None for all."""
        run = self._networks.candidates(current, candidates, self._check)
        walks = self._walks if current == self._walked else {}
        return {
            batch.index: self._results(batch, run(self._normalise(batch.pixels), walks.get(batch.index)))
            for batch in self._batches
            if batches is None or batch.index in batches
        }

    def settle(self, candidates: Sequence[Candidate]) -> dict[int, list[BatchResult]]:
        """Results of candidates by the masked network from the images on, in their order, by batch index."""
        results = {}
        for batch in self._batches:
            images = self._normalise(batch.pixels)
            masked, mode = self._networks.masked, self._networks.norm_mode
            logits = []
            for candidate in candidates:
                self._check()
                logits.append(masked.forward(images, candidate.subnetwork, norm_mode=mode))
            results[batch.index] = self._results(batch, logits)
        return results

    def _mean(self, mean: Tensor, count: int, logits: Tensor) -> Tensor:
        """Ensemble knowledge with one more network, unless the unpruned network alone is the teacher."""
        return add_to_mean(mean, count, logits) if self._rules.search_teacher == "ensemble" else mean

    def _terms(self, batch: SearchBatch, logits: Tensor, knowledge: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and score of every image (B,), in the dtype of the logits."""
        to_label, to_teacher = cross_entropy_terms(logits, batch.labels, knowledge)
        return to_label, to_label if self._rules.search_teacher == "none" else to_label + to_teacher

    def _results(self, batch: SearchBatch, logits: Sequence[Tensor]) -> list[BatchResult]:
        """Sums of several networks over one batch, brought to the host at once."""
        rows = []
        for one in logits:
            to_label, total = self._terms(batch, one.double(), self._knowledge[batch.index])
            correct = is_correct(one, batch.labels).sum().double()
            rows.append(torch.stack([correct, to_label.sum(), total.sum()]))
        return [
            BatchResult(images=len(batch.labels), correct=int(correct), loss_sum=loss, score_sum=score)
            for correct, loss, score in torch.stack(rows).tolist()
        ]


def evaluations(
    by_batch: dict[int, list[BatchResult]], num_candidates: int, nominal_batch: int | None = None
) -> list[Evaluation]:
    """Turn the results of every batch, each a list over candidates, into one evaluation per candidate."""
    return [
        mean_over_batches({batch: results[position] for batch, results in by_batch.items()}, nominal_batch)
        for position in range(num_candidates)
    ]
