"""A search in this process: its batches are split over evaluators, as they would be over workers."""

from collections.abc import Callable, Iterable, Sequence

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.base import Candidate, Decision, Evaluation, GroupScores, mean_over_batches, sum_over_batches
from ekgsearch.methods.budget import Budget, set_budget
from ekgsearch.methods.ekg.search import EkgSettings
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch, evaluations
from ekgsearch.methods.networks import FastNetworks, Networks
from ekgsearch.records import Subnetwork

SETTINGS = EkgSettings(step=0.4)


class LocalEvaluator:
    """Two evaluators that own different batches, as two workers would; counts what it is asked."""

    def __init__(self, parts: Sequence[BatchEvaluator]) -> None:
        self.parts = parts
        self.num_candidates = 0

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        return mean_over_batches(merge(part.begin(interim) for part in self.parts))

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        return sum_over_batches(merge(part.scores(current, count) for part in self.parts))

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        self.num_candidates += len(candidates)
        return evaluations(merge(part.evaluate(current, candidates) for part in self.parts), len(candidates))

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return evaluations(merge(part.settle(candidates) for part in self.parts), len(candidates))


def merge(answers: Iterable[dict]) -> dict:
    return {batch: value for answer in answers for batch, value in answer.items()}


def batch_evaluator(networks: Networks, batches: Sequence[SearchBatch]) -> BatchEvaluator:
    return BatchEvaluator(networks, lambda images: images, batches, 41)


def evaluator_of(
    graph: ChannelGraph,
    batches: list[SearchBatch],
    split: Sequence[Sequence[int]],
    networks: Callable[[ChannelGraph], Networks] = FastNetworks,
) -> LocalEvaluator:
    return LocalEvaluator([batch_evaluator(networks(graph), [batches[index] for index in part]) for part in split])


def budget_of(graph: ChannelGraph, reduction: float = 0.5, unit: str = "macs") -> Budget:
    return set_budget(graph, reduction=reduction, absolute=None, unit=unit, counter="macs")  # type: ignore[arg-type]


def records(decisions: Sequence[Decision]) -> list[dict]:
    return [decision.to_record() for decision in decisions]
