"""Channel groups that a search may cut, and how much of them goes, as a section of a job says it."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import NetworkError
from ekgsearch.methods.budget import Budget, set_budget
from ekgsearch.methods.section import SearchSection


def chosen_groups(graph: ChannelGraph, section: SearchSection) -> tuple[ChannelGroup, ...]:
    """Those that `search.groups` and `search.skip` leave, in the order of the network.

    Raises:
        NetworkError: none is left, or a pattern of `search.skip` names none.
    """
    names = [group.name for group in graph.groups]
    for pattern in section.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise NetworkError(
                f"search.skip: expected names of channel groups, found {pattern!r}, which is the name of none; "
                f"`ekgsearch groups JOB` lists them: {_some(names)}"
            )
    private = [group for group in graph.groups if section.groups == "all" or group.uses == 1]
    chosen = tuple(group for group in private if not any(fnmatchcase(group.name, one) for one in section.skip))
    if not chosen:
        reason = f"all {len(private)} are in search.skip" if private else f"all {len(names)} have several producers"
        raise NetworkError(
            f"search.groups = {section.groups}: expected a channel group that may be cut, found none: {reason}; "
            "choose search.groups all, or skip fewer"
        )
    return chosen


def budget_of(graph: ChannelGraph, section: SearchSection, groups: Sequence[ChannelGroup]) -> Budget:
    """The budget that a section asks for.

    Args:
        graph: the network.
        section: says how much goes, and how it is counted.
        groups: channel groups that may be cut.

    Raises:
        BudgetError: the cost cannot be reached, or is above the cost of the full network.
    """
    return set_budget(
        graph,
        reduction=section.reduction,
        absolute=section.budget,
        unit=section.unit,
        counter=section.counter,
        groups=groups,
        least_width=section.least_width,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
