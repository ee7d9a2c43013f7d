"""Rows of the tables about a search."""

from dataclasses import dataclass

from ekgsearch.rows.column import column


@dataclass(frozen=True, slots=True)
class IterationRow:
    """One decision of the search."""

    run: str = column("name of the run")
    iteration: int = column("search iteration, from 1; 0 is the unpruned network")
    channel_group: str = column("channel group that was cut in this iteration; empty in row 0")
    num_kept: int = column("channels that this channel group keeps afterwards")
    num_candidates: int = column("candidates evaluated in this iteration")
    threshold: float = column("trimmed Otsu threshold of the shortlist; NaN where all channel groups were tried")
    loss: float = column("cross-entropy to the labels on the search subset, nats per image, batch statistics")
    score: float = column(
        "loss plus cross-entropy to the ensemble knowledge, nats per image; the reward is its negative"
    )
    search_top1: float = column("accuracy on the search subset, percent, batch statistics")
    kept_macs: int = column("multiply-accumulates per image after this iteration (job's counter)")
    macs_reduction: float = column("share of the unpruned multiply-accumulates removed, 0..1")
    kept_params: int = column("parameters after this iteration (job's counter)")
    params_reduction: float = column("share of the unpruned parameters removed, 0..1")


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One candidate of one search iteration."""

    run: str = column("name of the run")
    iteration: int = column("search iteration, from 1")
    channel_group: str = column("channel group that the candidate cuts")
    num_kept: int = column("channels that this channel group would keep")
    loss: float = column("cross-entropy to the labels on the search subset, nats per image, batch statistics")
    score: float = column("loss plus cross-entropy to the ensemble knowledge, nats per image")
    reward: float = column("negative score")
    search_top1: float = column("accuracy on the search subset, percent, batch statistics")
    kept_macs: int = column("multiply-accumulates per image of the candidate (job's counter)")
    won: bool = column("true for the candidate that was taken")
    images: int = column(
        "images that it was evaluated on; fewer than the search subset where a race dropped it, 0 in older tables", 0
    )


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One decision of the search next to the one that the exact tier makes in its place."""

    run: str = column("name of the run")
    iteration: int = column("search iteration, from 1")
    channel_group: str = column("channel group that the run cut")
    num_kept: int = column("channels that the run kept of it")
    exact_channel_group: str = column("channel group that the exact tier cuts in the same place")
    exact_num_kept: int = column("channels that the exact tier keeps of it")
    agrees: bool = column("true where both leave the same channels")
    score: float = column("score of the run's sub-network by the exact tier, nats per image; lower is better")
    exact_score: float = column("score of the exact tier's sub-network, nats per image")
    regret: float = column("score minus exact_score; below 0 where the run's is better but not on the exact shortlist")
    shortlist_shared: float = column("candidates of both shortlists as a share of those of either, 0..1")


@dataclass(frozen=True, slots=True)
class SubnetworkRow:
    """One channel group of one interim sub-network."""

    run: str = column("name of the run")
    iteration: int = column("search iteration after which this sub-network stood; 0 is the unpruned network")
    teacher: int = column("index in the memory bank if it was chosen as a teacher, else -1; 0 has the lowest loss")
    channel_group: str = column("channel group")
    size: int = column("channels of the channel group in the unpruned network")
    num_kept: int = column("channels kept")
    kept: str = column("kept channel indices, as a JSON list")
