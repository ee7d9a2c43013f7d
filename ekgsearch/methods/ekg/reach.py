"""Decisions that do not depend on the budget: searches to different budgets share them."""

from collections.abc import Sequence
from fractions import Fraction

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.methods.base import Decision
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.ekg.search import EkgSettings, rate_of
from ekgsearch.methods.ekg.steps import coarse_step


def depends_on_budget(
    graph: ChannelGraph,
    budget: Budget,
    settings: EkgSettings,
    made: Sequence[Decision],
    groups: Sequence[ChannelGroup] | None = None,
) -> bool:
    """Whether the next decision may depend on how much is to be removed.

    It may as soon as the coarse proposal of any channel group, on the shortlist or not, falls below the budget: it is
    then refined, and the scores of what it removes enter Otsu's threshold. This is arithmetic on costs alone, which
    depend on how many channels are kept, not on which.

    Args:
        graph: the network's channel groups.
        budget: what the search aims at.
        settings: choices of the search.
        made: the decisions so far; none where the unpruned network is still to be evaluated.
        groups: channel groups that may be cut; None for all.
    """
    if not made:
        return False
    strategy, current = settings.strategy, made[-1].subnetwork
    rates = {decision.group: rate_of(decision) for decision in made}
    for group in graph.groups if groups is None else groups:
        kept = current[group.name]
        step = coarse_step(group.size, group.uses, settings.step)
        _, count = strategy.coarse(group.size, len(kept), rates.get(group.name, Fraction(1)), step)
        costs = cost(graph, current.replace(group.name, kept[:count]), budget.counter)
        if budget.has_room_above(costs.macs, costs.params):
            return True
    return False
