"""Table of the channel groups of a network, as text."""

from collections.abc import Mapping

from ekgsearch.channels.cost import cost, group_share, reachable
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.records import Costs, Counter


def group_lines(
    graph: ChannelGraph, counter: Counter = "macs", first_cuts: Mapping[str, int] | None = None
) -> list[str]:
    """Describe the channel groups of a network, one line each; then what is frozen and why.

    Args:
        graph: the network.
        counter: how operations are counted.
        first_cuts: channels that the first step of a search removes from each channel group; None leaves them out.
    """
    lines = [_line("channel group", "width", "" if first_cuts is None else "step", "MACs", "members")]
    for group in graph.groups:
        first = (first_cuts or {}).get(group.name, 0)
        share = f"{group_share(graph, group, counter):.2%}"
        lines.append(_line(group.name, str(group.size), f"-{first}" if first else "", share, _members(group)))
    frozen = [f"  {group.name} ({group.size} channels): {group.frozen}" for group in graph.frozen]
    return [*lines, "", f"frozen ({len(frozen)}):", *frozen] if frozen else lines


def total_lines(graph: ChannelGraph, counter: Counter = "macs", least: Costs | None = None) -> list[str]:
    """Say how many channels can be cut, and how far the network can be reduced.

    Args:
        graph: the network.
        counter: how operations and parameters are counted.
        least: costs that can be reached; None for those of one channel in each channel group.
    """
    full, least = cost(graph, graph.full(), counter), least or reachable(graph, counter)
    return [
        f"{len(graph.groups)} channel groups, {sum(group.size for group in graph.groups):,} channels that can be cut "
        f"(counter {counter})",
        _total("MACs", full.macs, least.macs),
        _total("params", full.params, least.params),
    ]


def table(graph: ChannelGraph) -> str:
    """Describe the channel groups of a network, what is frozen, and how far it can be reduced."""
    warnings = [f"warning: {warning}" for warning in graph.warnings]
    return "\n".join([*group_lines(graph), "", *total_lines(graph), *warnings])


def _members(group: ChannelGroup) -> str:
    return ", ".join(
        [
            f"{len(group.producers)} out ({_some([member.layer for member in group.producers])})",
            f"{len(group.norms)} norm",
            f"{len(group.consumers)} in ({_some([member.layer for member in group.consumers])})",
        ]
    )


def _total(unit: str, full: int, least: int) -> str:
    return f"{unit:<7} {full:>15,}  reachable {least:>13,}  (reduction up to {1 - least / full:.2%})"


def _line(name: str, width: str, step: str, share: str, members: str) -> str:
    return f"{name:<28} {width:>6} {step:>5} {share:>8}  {members}"


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, +{len(names) - 3}"
