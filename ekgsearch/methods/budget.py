"""Budget of a search: a cost to meet from below, refused where it cannot be reached."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ekgsearch.channels.cost import cost, reachable
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import BudgetError
from ekgsearch.records import Counter

Unit = Literal["macs", "params"]


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on multiply-accumulates or parameters under one counter.

    Attributes:
        limit: the search ends with the first network whose cost is at most this; infinite where the method decides how
            much goes.
        unit: what is limited.
        counter: how it is counted.
    """

    limit: float
    unit: Unit
    counter: Counter

    @property
    def is_limit(self) -> bool:
        """Whether there is one."""
        return math.isfinite(self.limit)

    def measured(self, macs: int, params: int) -> int:
        """The one of the two costs that this budget limits."""
        return macs if self.unit == "macs" else params

    def is_met(self, macs: int, params: int) -> bool:
        """Whether a cost is at or below the limit."""
        return self.measured(macs, params) <= self.limit

    def has_room_above(self, macs: int, params: int) -> bool:
        """Whether a cost is strictly below the limit, so that channels could be given back."""
        return self.measured(macs, params) < self.limit


def set_budget(
    graph: ChannelGraph,
    *,
    reduction: float | None,
    absolute: int | None,
    unit: Unit,
    counter: Counter,
    groups: Sequence[ChannelGroup] | None = None,
    least_width: int = 1,
) -> Budget:
    """Turn a share to remove (tau) or an absolute cost into a budget that this network can meet.

    Args:
        graph: the network's channel groups.
        reduction: share of the full cost to remove, in (0, 1); None if `absolute` is given, or nothing limits.
        absolute: largest cost allowed; None if `reduction` is given, or nothing limits.
        unit: what is limited.
        counter: how it is counted.
        groups: channel groups that may be cut; None for all.
        least_width: channels that each of them keeps at least.

    Raises:
        BudgetError: the cost cannot be reached even with as few channels as that in each channel group, or is above the
            cost of the full network. At that cost nothing is cut, and the full network is the only teacher.
    """
    if reduction is None and absolute is None:
        return Budget(math.inf, unit, counter)
    full_costs, least_costs = cost(graph, graph.full(), counter), reachable(graph, counter, groups, least_width)
    budget = Budget(0, unit, counter)
    full = budget.measured(full_costs.macs, full_costs.params)
    least = budget.measured(least_costs.macs, least_costs.params)
    limit = float(absolute) if absolute is not None else (1 - (reduction or 0.0)) * full
    asked = f"{limit:,.0f} {unit}" if reduction is None else f"a reduction of {reduction:.4g} ({limit:,.0f} {unit})"
    if not least <= limit <= full:
        raise BudgetError(
            f"search: {asked} cannot be reached by this network (counter {counter}): it has {full:,} {unit} and its "
            f"channel groups can be cut down to {least:,}, a reduction of at most {1 - least / full:.4f}; "
            "choose a budget in that range"
        )
    return Budget(limit, unit, counter)
