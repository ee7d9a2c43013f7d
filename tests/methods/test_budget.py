"""What a budget accepts: from the smallest cost that this network can have to its full cost, both ends included."""

import pytest

from ekgsearch.channels.cost import cost, reachable
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import BudgetError
from ekgsearch.methods.budget import Unit, set_budget
from ekgsearch.records import Counter


@pytest.mark.parametrize(("unit", "counter"), [("macs", "macs"), ("params", "ekg")])
def test_the_last_budgets_that_are_accepted_and_the_first_that_are_refused(
    graph: ChannelGraph, unit: Unit, counter: Counter
) -> None:
    full, least = (getattr(costs, unit) for costs in (cost(graph, graph.full(), counter), reachable(graph, counter)))
    for limit in (least, full):  # at the full cost nothing is cut, and the full network is the only teacher
        budget = set_budget(graph, reduction=None, absolute=limit, unit=unit, counter=counter)
        costs = {"macs": 10**12, "params": 10**12, unit: limit}
        assert (budget.limit, budget.unit, budget.counter) == (limit, unit, counter)
        assert budget.is_met(**costs)
        assert not budget.has_room_above(**costs)
        assert not budget.is_met(**{**costs, unit: limit + 1})
        assert budget.has_room_above(**{**costs, unit: limit - 1})
    for limit in (least - 1, full + 1):
        with pytest.raises(
            BudgetError, match=f"{limit:,} {unit} cannot be reached .*counter {counter}.*{full:,} {unit}"
        ):
            set_budget(graph, reduction=None, absolute=limit, unit=unit, counter=counter)


def test_a_reduction_is_a_share_of_the_full_cost(graph: ChannelGraph) -> None:
    full, least = cost(graph, graph.full(), "macs").macs, reachable(graph, "macs").macs
    assert set_budget(graph, reduction=0.25, absolute=None, unit="macs", counter="macs").limit == 0.75 * full
    most = 1 - least / full
    set_budget(graph, reduction=most - 1e-9, absolute=None, unit="macs", counter="macs")
    with pytest.raises(BudgetError, match=f"a reduction of at most {most:.4f}"):
        set_budget(graph, reduction=most + 1e-6, absolute=None, unit="macs", counter="macs")
