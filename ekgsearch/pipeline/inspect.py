"""Table of the channel groups of a job's network."""

import math

from ekgsearch.channels.cost import group_share, reachable
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.experiment import Job
from ekgsearch.pipeline.images import classes_and_shape
from ekgsearch.pipeline.network import OpenedNetwork, open_network


def group_table(job: Job) -> str:
    """Describe the channel groups of a job's network as text; no picture is decoded for it.

    One line per group: members, width, first step of the search, share of the multiply-accumulates that go if the
    group alone is cut to one channel; then what is frozen and why, and how far the whole network can be reduced.
    """
    found = open_network(job, *classes_and_shape(job))
    lines = [_line("channel group", "width", "step", "MACs", "members")]
    lines += [_describe(job, found, group) for group in found.graph.groups]
    frozen = [f"  {group.name} ({group.size} channels): {group.frozen}" for group in found.graph.frozen]
    if frozen:
        lines += ["", f"frozen ({len(frozen)}):", *frozen]
    return "\n".join([*lines, "", *_totals(job, found)])


def _describe(job: Job, found: OpenedNetwork, group: ChannelGroup) -> str:
    counter = job.search.counter
    first = group.size - max(1, math.ceil(group.size * job.search.first_width(group.size, group.uses)))
    members = [
        f"{len(group.producers)} out ({_some([member.layer for member in group.producers])})",
        f"{len(group.norms)} norm",
        f"{len(group.consumers)} in ({_some([member.layer for member in group.consumers])})",
    ]
    share = group_share(found.graph, group, counter)
    return _line(group.name, str(group.size), f"-{first}" if first else "", f"{share:.2%}", ", ".join(members))


def _totals(job: Job, found: OpenedNetwork) -> list[str]:
    search, budget = job.search, found.budget
    full, least = found.full_costs, reachable(found.graph, search.counter, found.groups, search.least_width)
    return [
        f"{len(found.graph.groups)} channel groups, "
        f"{sum(group.size for group in found.graph.groups):,} channels that can be cut (counter {search.counter})",
        _total("MACs", full.macs, least.macs),
        _total("params", full.params, least.params),
        *([f"budget  {budget.limit:>15,.0f}  {budget.unit}"] if budget.is_limit else []),
        *(f"warning: {warning}" for warning in found.graph.warnings),
    ]


def _total(unit: str, full: int, least: int) -> str:
    return f"{unit:<7} {full:>15,}  reachable {least:>13,}  (reduction up to {1 - least / full:.2%})"


def _line(name: str, width: str, step: str, share: str, members: str) -> str:
    return f"{name:<28} {width:>6} {step:>5} {share:>8}  {members}"


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, +{len(names) - 3}"
