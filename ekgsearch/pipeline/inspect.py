"""Table of the channel groups of a job's network."""

import math

from ekgsearch.channels.cost import reachable
from ekgsearch.channels.table import group_lines, total_lines
from ekgsearch.experiment import Job
from ekgsearch.pipeline.images import classes_and_shape
from ekgsearch.pipeline.network import open_network


def group_table(job: Job) -> str:
    """Describe the channel groups of a job's network as text; no picture is decoded for it.

    One line per group: members, width, first step of the search, share of the multiply-accumulates that go if the
    group alone is cut to one channel; then what is frozen and why, and how far the whole network can be reduced.
    """
    found = open_network(job, *classes_and_shape(job))
    search, budget = job.search, found.budget
    first = {
        group.name: group.size - max(1, math.ceil(group.size * search.first_width(group.size, group.uses)))
        for group in found.graph.groups
    }
    least = reachable(found.graph, search.counter, found.groups, search.least_width)
    limit = [f"budget  {budget.limit:>15,.0f}  {budget.unit}"] if budget.is_limit else []
    warnings = [f"warning: {warning}" for warning in found.graph.warnings]
    lines = group_lines(found.graph, search.counter, first)
    return "\n".join([*lines, "", *total_lines(found.graph, search.counter, least), *limit, *warnings])
