"""A search in this process: its batches are split over evaluators, as they would be over workers."""

from collections.abc import Callable, Sequence

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.base import Candidate, Decision, Evaluation
from ekgsearch.methods.budget import Budget, set_budget
from ekgsearch.methods.ekg.search import EkgSettings
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch
from ekgsearch.methods.local import LocalEvaluator as OwnEvaluator
from ekgsearch.methods.networks import FastNetworks, Networks
from ekgsearch.records import Subnetwork

SETTINGS = EkgSettings(step=0.4)


class LocalEvaluator(OwnEvaluator):
    """Counts the candidates that it is asked about."""

    num_candidates = 0

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        self.num_candidates += len(candidates)
        return super().evaluate(current, candidates)


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
