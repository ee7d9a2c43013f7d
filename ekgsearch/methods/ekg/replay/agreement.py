"""Comparison of a repeated decision with its record, and the places where they part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ekgsearch.methods.base import Decision, GroupScores
from ekgsearch.methods.ekg.replay.oracle import RecordedIteration
from ekgsearch.methods.ekg.search import rate_of
from ekgsearch.methods.ekg.steps import importance_order

IMPORTANCE_TOLERANCE = 1e-3
"""Share of the largest score of a channel group; relative for sums and thresholds."""

SCORE_TOLERANCE = 1e-6
"""Absolute, for losses and scores of about 5e-3; a smaller margin decides nothing."""

RATE_TOLERANCE = 1e-6
"""Absolute, for widths, which are rounded to five decimals."""

SCORE_FLOOR = 1e-9
"""Share of the largest score of all channel groups: deviations are not measured by scores below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationReport:
    """How far one repeated iteration agrees with its record.

    Attributes:
        iteration: number of the iteration.
        importance: largest deviation of a channel's score, as a share of its group's largest; of several draws the
            smallest.
        undrawn_importance: the same without any rounding draw.
        draws: rounding draws that were made; 0 where the images as they are agree.
        sums: largest relative deviation of what channel groups are judged by.
        threshold: relative deviation of the threshold.
        num_candidates: candidates that were tried.
        loss: largest absolute deviation of a candidate's loss.
        score: largest absolute deviation of a candidate's score.
        winner: channel group that was cut here.
        margin: recorded margin between the best and the second candidate.
        macs: recorded cost of the winner, multiply-accumulates.
        params: recorded cost of the winner, parameters.
        near_ties: channel groups whose channels were taken in the recorded order, since their scores differ by less
            than the tolerance.
        breaks: what does not agree, a sentence each; empty where all does.
    """

    iteration: int
    importance: float
    undrawn_importance: float
    draws: int
    sums: float
    threshold: float
    num_candidates: int
    loss: float
    score: float
    winner: str
    margin: float
    macs: int
    params: int
    near_ties: tuple[str, ...]
    breaks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeRun:
    """A run of decisions, each from the state that the one before left.

    Attributes:
        first: iteration that it starts with, from the recorded state.
        last: last iteration whose recorded margin is large enough to decide.
        broke_at: first iteration with another winner or other channels; None where there is none.
        parted_at: iteration before which the run ended, since its decision is the recorded one only if channels that
            nearly tie are taken in the recorded order; None where there is none.
        near_tie: largest difference of the recorded scores of channels that nearly tie there, as a share of their
            channel group's largest; 0 where there is none.
    """

    first: int
    last: int
    broke_at: int | None = None
    parted_at: int | None = None
    near_tie: float = 0.0


def largest_deviation(scores: GroupScores, expected: GroupScores) -> float:
    """Largest difference of two channel scores, as a share of the largest expected score of their channel group.

    A channel group whose scores are all as good as zero is measured by `SCORE_FLOOR`.
    """
    largest = max(float(values.max()) for values in expected.values())
    floor = max(SCORE_FLOOR * largest, np.finfo(np.float32).tiny)
    return max(
        float(np.abs(scores[name] - values).max() / max(values.max(), floor)) for name, values in expected.items()
    )


def most_important(scores: NDArray[np.float64], count: int) -> set[int]:
    """The `count` channels of the highest scores, ties to the lower index."""
    return set(importance_order(scores, range(len(scores)))[:count])


def in_recorded_order(record: RecordedIteration, own: GroupScores) -> tuple[GroupScores, dict[str, float], list[str]]:
    """Take the recorded order of channels where ours is another one.

    Returns:
        Our scores, with the recorded ones for channel groups in which channels are in another order; the channel groups
        where that is a near tie, with the difference of the recorded scores as a share of the largest; and what is
        none, a sentence each.
    """
    tried = {candidate.group: candidate.num_kept for candidate in record.candidates}
    used, near_ties, breaks = dict(own), dict[str, float](), []
    for name, expected in record.scores.items():
        counts = {len(record.before.subnetwork[name]), tried.get(name, len(expected))}
        swapped = set[int]().union(
            *(most_important(own[name], count) ^ most_important(expected, count) for count in counts)
        )
        if not swapped:
            continue
        used[name] = expected
        gap = float(np.ptp(expected[sorted(swapped)]) / max(expected.max(), np.finfo(np.float32).tiny))
        if gap <= 2 * IMPORTANCE_TOLERANCE:
            near_ties[name] = gap
        else:
            breaks.append(f"{name} ranks the channels {sorted(swapped)} otherwise")
    return used, near_ties, breaks


def compare_candidates(decision: Decision, record: RecordedIteration) -> tuple[float, float, list[str]]:
    """Compare shortlist and candidates.

    Returns:
        Largest absolute deviations of loss and score over the candidates that both tried, and what does not agree.
    """
    breaks = []
    tried = tuple(outcome.group for outcome in decision.candidates)
    if tried != record.shortlist:
        missing, added = sorted(set(record.shortlist) - set(tried)), sorted(set(tried) - set(record.shortlist))
        breaks.append(f"the shortlist leaves out {missing} and adds {added}")
    if tuple(candidate.group for candidate in record.candidates) != record.shortlist:
        breaks.append("the recorded candidates are not the recorded shortlist")
    found = {outcome.group: outcome for outcome in decision.candidates}
    loss = score = 0.0
    for candidate in record.candidates:
        outcome = found.get(candidate.group)
        if outcome is None:
            continue
        ours = (outcome.num_kept, outcome.macs, outcome.params)
        if ours != (candidate.num_kept, candidate.macs, candidate.params):
            breaks.append(
                f"{candidate.group} keeps {ours[0]} channels at {ours[1]:,} FLOPs and {ours[2]:,} parameters, recorded "
                f"{candidate.num_kept} at {candidate.macs:,} and {candidate.params:,}"
            )
        off_loss = abs(outcome.evaluation.loss - candidate.loss)
        off_score = abs(outcome.evaluation.score - candidate.score)
        if not (off_loss <= SCORE_TOLERANCE and off_score <= SCORE_TOLERANCE):
            breaks.append(f"loss and score of {candidate.group} are off by {off_loss:.1e} and {off_score:.1e}")
        loss, score = max(loss, off_loss), max(score, off_score)
    return loss, score, breaks


def compare_outcome(decision: Decision, record: RecordedIteration, used: GroupScores) -> list[str]:
    """Compare the winner, and the channels and widths that the recorded winner leaves.

    Args:
        decision: ours.
        record: the recorded one.
        used: channel scores that ours was made by, as `in_recorded_order` gives them.

    Returns:
        What does not agree.
    """
    breaks = []
    scores = {candidate.group: candidate.score for candidate in record.candidates}
    lowest = min(scores.values(), default=float("nan"))
    if record.winner not in scores or scores[record.winner] > lowest:
        breaks.append(f"the recorded winner {record.winner} has not the lowest recorded score")
    is_open = record.margin < SCORE_TOLERANCE
    may_win = {group for group, score in scores.items() if is_open and score - lowest < SCORE_TOLERANCE}
    if decision.group != record.winner and decision.group not in may_win:
        breaks.append(f"{decision.group} wins, recorded {record.winner}")
    for name, kept in record.after.kept:
        found = _kept(decision, record, used, name)
        if found != set(kept):
            breaks.append(f"{name} keeps the channels {sorted(found)}, recorded {list(kept)}")
    widths = {**record.before.rates, record.winner: record.rates_after[record.winner]}
    if decision.group == record.winner:
        widths[record.winner] = rate_of(decision)
    breaks += [
        f"{name} has the width {float(width)}, recorded {float(record.rates_after[name])}"
        for name, width in widths.items()
        if abs(width - record.rates_after[name]) > RATE_TOLERANCE
    ]
    return breaks


def _kept(decision: Decision, record: RecordedIteration, used: GroupScores, name: str) -> set[int]:
    """Channels of a channel group that are left, had the recorded winner been cut here.

    Where another candidate won a tie, neither winner's channels are those of the decision; they follow from the scores.
    """
    if decision.group == record.winner or name not in (decision.group, record.winner):
        return set(decision.subnetwork[name])
    count = len(record.before.subnetwork[name])
    if name == record.winner:
        kept_by = {outcome.group: outcome.num_kept for outcome in decision.candidates}
        count = kept_by.get(name, count)
    return most_important(used[name], count)
