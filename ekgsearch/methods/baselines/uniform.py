"""The baseline every search must beat: all channel groups narrowed by the same share."""

from collections.abc import Sequence
from typing import Any

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.methods.baselines.ranking import cut_down, places_in_group, worst_first
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.criteria import filter_scores, l1_scores
from ekgsearch.methods.one_shot import OneShot
from ekgsearch.records import Subnetwork


class Uniform(OneShot):
    """Cuts all channel groups to the same share."""

    def cut(self, current: Subnetwork) -> tuple[Subnetwork, dict[str, Any]]:
        """The sub-network; nothing else is recorded."""
        materials = self.materials
        return uniform_width(materials.open_graph(), materials.budget, materials.groups, current), {}


def uniform_width(
    graph: ChannelGraph,
    budget: Budget,
    groups: Sequence[ChannelGroup] | None = None,
    current: Subnetwork | None = None,
) -> Subnetwork:
    """Return the widest network that keeps the same share of every channel group, to one channel, and meets the budget.

    Inside a channel group the filters with the largest L1 norm, summed over its producers, are kept. Channels go one by
    one: where several channel groups lose their next channel at the same share, the first of them loses it first, until
    the budget is met.

    Args:
        graph: the network.
        budget: what to meet.
        groups: channel groups that may be cut; None for all.
        current: what stands; None for the unpruned network.
    """
    standing, chosen = current or graph.full(), graph.groups if groups is None else groups
    places = places_in_group(filter_scores(l1_scores, graph, standing), chosen)
    return cut_down(graph, budget, budget.limit, standing, worst_first(places, chosen, standing))
