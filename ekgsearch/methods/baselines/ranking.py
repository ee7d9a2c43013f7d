"""Rankings of channels over many channel groups, and the cut that takes those that rank last."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.methods.base import GroupScores
from ekgsearch.methods.budget import Budget
from ekgsearch.records import Subnetwork

Channel = tuple[str, int]
"""A channel by the name of its channel group and its index there."""


def cut_down(
    graph: ChannelGraph, budget: Budget, limit: float, current: Subnetwork, ranked: Sequence[Channel]
) -> Subnetwork:
    """Remove channels one by one until the cost is at most a limit: without the last of them it would be above.

    Args:
        graph: the network.
        budget: what is counted, and how.
        limit: largest cost of the result; these channels suffice to reach it.
        current: what stands.
        ranked: channels of it that may go, in this order.
    """

    def is_met(number: int) -> bool:
        costs = cost(graph, _without(current, ranked[:number]), budget.counter)
        return budget.measured(costs.macs, costs.params) <= limit

    return _without(current, ranked[: bisect_left(range(len(ranked)), True, key=is_met)])


def worst_first(scores: GroupScores, groups: Sequence[ChannelGroup], current: Subnetwork) -> list[Channel]:
    """Rank the channels that may go over all channel groups, those with the lowest scores first.

    The best channel of each channel group is not among them. Of equal scores that of the first channel group goes
    first, and within a channel group that of the highest index.

    Args:
        scores: of every channel, by channel group.
        groups: those that may be cut.
        current: what stands.
    """
    keys = []
    for place, group in enumerate(groups):
        values = scores[group.name].tolist()
        keys += sorted((values[channel], place, -channel) for channel in current[group.name])[:-1]
    return [(groups[place].name, -channel) for _, place, channel in sorted(keys)]


def places_in_group(scores: GroupScores, groups: Sequence[ChannelGroup]) -> GroupScores:
    """Share of its channel group that ranks below each channel: cut by this, all groups lose the same share."""
    return {group.name: _places(scores[group.name]) for group in groups}


def _places(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    size = len(scores)
    best_first = sorted(range(size), key=lambda channel: (-scores[channel], channel))
    places = np.empty(size)
    places[best_first] = [1 - number / size for number in range(1, size + 1)]
    return places


def _without(current: Subnetwork, channels: Sequence[Channel]) -> Subnetwork:
    kept = {name: set(indices) for name, indices in current.kept}
    for name, channel in channels:
        kept[name].discard(channel)
    return Subnetwork.of(kept)
