"""Repeat recorded decisions one by one, each from the recorded state, and say where they part."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import DataError
from ekgsearch.methods.base import (
    Candidate,
    Decision,
    Evaluation,
    GroupScores,
    mean_over_batches,
    sum_over_batches,
)
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.ekg.quirks import QUIRKS
from ekgsearch.methods.ekg.replay.agreement import (
    IMPORTANCE_TOLERANCE,
    RATE_TOLERANCE,
    SCORE_TOLERANCE,
    FreeRun,
    IterationReport,
    compare_candidates,
    compare_outcome,
    in_recorded_order,
    largest_deviation,
)
from ekgsearch.methods.ekg.replay.oracle import Oracle, RecordedIteration
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings, rate_of
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch, evaluations
from ekgsearch.methods.networks import SLICE_BELOW, TIE_TOLERANCE, FastNetworks
from ekgsearch.records import Subnetwork

NOMINAL_BATCH = 256

TINY = 1e-30
"""What a deviation is divided by where the recorded number is 0."""

ROUNDING_DRAWS = 16
"""Times that scores are computed anew from images that differ by a rounding error; see `Replay`."""

ROUNDING_NOISE = 1e-7
"""Relative size of that difference; one unit in the last place of a float32 is 0.6 to 1.2e-7."""


class _GivenScores:
    """Decides by given channel scores."""

    def __init__(self, batches: BatchEvaluator, scores: GroupScores | None) -> None:
        self._batches = batches
        self._scores = scores

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        return mean_over_batches(self._batches.begin(interim), NOMINAL_BATCH)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        return sum_over_batches(self._batches.scores(current, count)) if self._scores is None else self._scores

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return evaluations(self._batches.evaluate(current, candidates), len(candidates), NOMINAL_BATCH)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return evaluations(self._batches.settle(candidates), len(candidates), NOMINAL_BATCH)


class Replay:
    """Repeats the decisions of a recorded search with all quirks of the program that was published with the paper.

    Every iteration starts from the recorded state. Where a ReLU's input lies within a rounding error of zero, its
    gradient, and with it the importance of many channels, depends on how a machine rounds: two correct programs may
    differ by 0.5 % there. Scores that deviate are therefore computed anew from images that differ by a rounding error,
    at most `ROUNDING_DRAWS` times, and the closest ones count.

    Args:
        oracle: the record.
        graph: the network with the weights that the record started from.
        normalise: maps pixels (B, 3, H, W) uint8 to the network's input.
        batches: the search subset in the recorded order, cut into batches of 256.
        reduction: share of the cost that the recorded search removed.
        slice_below: as `search.slice_below` of a job, with near ties settled as there; 0 slices nothing.

    Raises:
        DataError: the record belongs to another network.
    """

    def __init__(
        self,
        oracle: Oracle,
        graph: ChannelGraph,
        normalise: Callable[[Tensor], Tensor],
        batches: Sequence[SearchBatch],
        reduction: float,
        slice_below: float = SLICE_BELOW,
    ) -> None:
        self.oracle = oracle
        self.graph = graph
        self._batches = list(batches)
        self._normalise = normalise
        self._networks = FastNetworks(graph, slice_below, "batch_sequential")
        self._settings = EkgSettings(quirks=frozenset(QUIRKS), tie_tolerance=TIE_TOLERANCE if slice_below else 0.0)
        self._budget = set_budget(graph, reduction=reduction, absolute=None, unit="macs", counter="ekg")
        full = self._costs(graph.full())
        if full != (oracle.full_macs, oracle.full_params):
            raise DataError(
                f"{oracle.folder}: recorded for a network of {oracle.full_macs:,} FLOPs and {oracle.full_params:,} "
                f"parameters (counter ekg), found {full[0]:,} and {full[1]:,}; give the weights of that network"
            )

    def run(self, iterations: Sequence[int] | None = None) -> Iterator[IterationReport]:
        """Repeat iterations, each from its recorded state; all complete ones if None.

        Raises:
            DataError: an iteration is not complete, or a file is damaged.
        """
        for number in self.oracle.iterations if iterations is None else iterations:
            yield self._repeat(self.oracle.iteration(number, self.graph))

    def free_runs(self, iterations: Sequence[int] | None = None) -> Iterator[FreeRun]:
        """Run freely through each stretch of consecutive iterations whose margins are large enough to decide.

        A stretch of one iteration is left out: `run` has done the same. A run ends before an iteration whose decision
        is the recorded one only if channels that nearly tie are taken in the recorded order.

        Raises:
            DataError: as `run`.
        """
        chosen = self.oracle.iterations if iterations is None else iterations
        records = [self.oracle.iteration(number, self.graph) for number in chosen]
        decided = [record for record in records if record.margin >= SCORE_TOLERANCE]
        for _, stretch in itertools.groupby(enumerate(decided), lambda item: item[1].number - item[0]):
            found = [record for _, record in stretch]
            if len(found) > 1:
                yield self._run_freely(found)

    def decide(self, record: RecordedIteration, scores: GroupScores) -> Decision:
        """Make the decision of a recorded iteration from its recorded state, by given channel scores."""
        search = self._search(_GivenScores(self._evaluator(record, self._normalise), scores))
        return search.decide(self._decision_before(record), record.before.rates)

    def _run_freely(self, records: Sequence[RecordedIteration]) -> FreeRun:
        first, last = records[0].number, records[-1].number
        evaluator = self._evaluator(records[0], self._normalise)
        current, rates = self._decision_before(records[0]), dict(records[0].before.rates)
        for record in records:
            decision = self._search(_GivenScores(evaluator, None)).decide(current, rates)
            if not _follows(decision, record):
                knowledge = {batch.index: evaluator.knowledge(batch.index) for batch in self._batches}
                own, *_ = self._own_scores(record, knowledge)
                used, near_ties, far = in_recorded_order(record, own)
                decision = self._search(_GivenScores(evaluator, used)).decide(current, rates)
                if far or not _follows(decision, record):
                    return FreeRun(first, last, broke_at=record.number)
                if near_ties:
                    return FreeRun(first, last, parted_at=record.number, near_tie=max(near_ties.values()))
            current = decision
            rates[current.group] = rate_of(current)
        return FreeRun(first, last)

    def _repeat(self, record: RecordedIteration) -> IterationReport:
        own, importance, undrawn, draws = self._own_scores(record, self._knowledge_before(record))
        used, near_ties, breaks = in_recorded_order(record, own)
        if importance > IMPORTANCE_TOLERANCE:
            breaks.append(f"importance is off by {importance:.1e} of a channel group's largest")
        sums = max(
            (abs(float(own[name].sum()) - value) / value for name, value in record.sums.items() if value > 0),
            default=0.0,
        )
        if sums > IMPORTANCE_TOLERANCE:
            breaks.append(f"the sum of a channel group's importance is off by {sums:.1e}")
        decision = self.decide(record, used)
        found = decision.own["threshold"]
        threshold = abs((found or 0.0) - record.threshold) / max(record.threshold, TINY)
        if threshold > IMPORTANCE_TOLERANCE:
            breaks.append(f"the threshold is {found}, recorded {record.threshold}")
        loss, score, differences = compare_candidates(decision, record)
        breaks += differences + compare_outcome(decision, record, used)
        chosen = next((candidate for candidate in record.candidates if candidate.group == record.winner), None)
        return IterationReport(
            iteration=record.number,
            importance=importance,
            undrawn_importance=undrawn,
            draws=draws,
            sums=sums,
            threshold=threshold,
            num_candidates=len(decision.candidates),
            loss=loss,
            score=score,
            winner=decision.group,
            margin=record.margin,
            macs=chosen.macs if chosen else 0,
            params=chosen.params if chosen else 0,
            near_ties=tuple(near_ties),
            breaks=tuple(breaks),
        )

    def _own_scores(
        self, record: RecordedIteration, knowledge: Mapping[int, Tensor]
    ) -> tuple[GroupScores, float, float, int]:
        """Our scores under the ensemble knowledge of every batch; how far off, drawn and not; rounding draws made."""
        generator = torch.Generator().manual_seed(record.number)
        found: list[tuple[float, GroupScores]] = []
        while not found or (found[-1][0] > IMPORTANCE_TOLERANCE and len(found) <= ROUNDING_DRAWS):
            normalise = partial(_rounded, self._normalise, generator) if found else self._normalise
            evaluator = BatchEvaluator(self._networks, normalise, self._batches, NOMINAL_BATCH)
            evaluator.set_knowledge(knowledge, record.number)
            scores = sum_over_batches(evaluator.scores(record.before.subnetwork, record.number))
            found.append((largest_deviation(scores, record.scores), scores))
        deviation, best = min(found, key=lambda item: item[0])
        return best, deviation, found[0][0], len(found) - 1

    def _evaluator(self, record: RecordedIteration, normalise: Callable[[Tensor], Tensor]) -> BatchEvaluator:
        """An evaluator that holds the recorded ensemble knowledge."""
        evaluator = BatchEvaluator(self._networks, normalise, self._batches, NOMINAL_BATCH)
        evaluator.set_knowledge(self._knowledge_before(record), record.number)
        return evaluator

    def _knowledge_before(self, record: RecordedIteration) -> dict[int, Tensor]:
        return dict(enumerate(torch.split(torch.from_numpy(record.before.knowledge), NOMINAL_BATCH)))

    def _search(self, evaluator: _GivenScores) -> EkgSearch:
        return EkgSearch(self.graph, evaluator, self._budget, self._settings)

    def _decision_before(self, record: RecordedIteration) -> Decision:
        subnetwork = record.before.subnetwork
        macs, params = self._costs(subnetwork)
        return Decision(
            iteration=record.number - 1, group="", changed=(), subnetwork=subnetwork, macs=macs, params=params
        )

    def _costs(self, subnetwork: Subnetwork) -> tuple[int, int]:
        costs = cost(self.graph, subnetwork, "ekg")
        return costs.macs, costs.params


def _follows(decision: Decision, record: RecordedIteration) -> bool:
    """Whether a decision is the recorded one."""
    if decision.group != record.winner or decision.subnetwork != record.after:
        return False
    return abs(rate_of(decision) - record.rates_after[record.winner]) <= RATE_TOLERANCE


def _rounded(normalise: Callable[[Tensor], Tensor], generator: torch.Generator, pixels: Tensor) -> Tensor:
    """Normalised images, each number off by about a rounding error."""
    images = normalise(pixels)
    noise = torch.randn(images.shape, generator=generator) * ROUNDING_NOISE
    return images * (1 + noise.to(images.device))
