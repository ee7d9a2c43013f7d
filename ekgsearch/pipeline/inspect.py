"""Channel groups of a job's network, as text or as JSON values, without decoding a picture."""

import dataclasses
import logging
import math
from typing import Any

from ekgsearch.artefact.recipe import InputShape
from ekgsearch.artefact.sidecar import read_sidecar
from ekgsearch.channels.cost import group_share, reachable
from ekgsearch.channels.table import group_lines, total_lines
from ekgsearch.errors import EkgError, JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import expand_path
from ekgsearch.pipeline.images import classes_and_shape
from ekgsearch.pipeline.network import OpenedNetwork, open_network, weights_path

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Inspected:
    """The network of a job, opened for its channel groups alone.

    Attributes:
        job: the job; without weights, where they are missing.
        opened: the network.
    """

    job: Job
    opened: OpenedNetwork

    def text(self) -> str:
        """One line per channel group, what is frozen and why, and how far the whole network can be reduced.

        A line tells members, width, first step of the search, and the share of the multiply-accumulates that go if the
        channel group alone is cut to one channel.
        """
        found, search, budget = self.opened, self.job.search, self.opened.budget
        first = {
            group.name: group.size - max(1, math.ceil(group.size * search.first_width(group.size, group.uses)))
            for group in found.graph.groups
        }
        least = reachable(found.graph, search.counter, found.groups, search.least_width)
        limit = [f"budget  {budget.limit:>15,.0f}  {budget.unit}"] if budget.is_limit else []
        warnings = [f"warning: {warning}" for warning in found.graph.warnings]
        lines = group_lines(found.graph, search.counter, first)
        return "\n".join([*lines, "", *total_lines(found.graph, search.counter, least), *limit, *warnings])

    def values(self) -> dict[str, Any]:
        """The same as JSON values."""
        graph, search, full = self.opened.graph, self.job.search, self.opened.full_costs
        least = reachable(graph, search.counter, self.opened.groups, search.least_width)
        return {
            "network": self.opened.recipe.name,
            "input_shape": list(graph.input_shape),
            "macs": full.macs,
            "params": full.params,
            "counter": search.counter,
            "reachable_macs": least.macs,
            "groups": [
                {
                    "name": group.name,
                    "size": group.size,
                    "share_of_macs": group_share(graph, group, search.counter),
                }
                for group in graph.groups
            ],
            "frozen": [{"name": group.name, "size": group.size, "reason": group.frozen} for group in graph.frozen],
            "warnings": list(graph.warnings),
        }


def inspect(job: Job, input_shape: InputShape | None = None, classes: int | None = None) -> Inspected:
    """Open the network of a job; what the images would tell is taken from elsewhere where they are missing.

    Weights that are missing are left out with a warning: the channel groups are the same without them.

    Args:
        job: the job.
        input_shape: (channels, height, width) of one image; None for that of the images, else of the weights' sidecar.
        classes: number of classes; None for that of the images, else of the weights' sidecar.

    Raises:
        JobError: neither images nor weights tell what is needed.
        NetworkError, BudgetError: see `open_network`.
    """
    job = _without_missing_weights(job)
    if input_shape is None or classes is None:
        found_classes, found_shape = _of_images(job)
        classes, input_shape = classes or found_classes, input_shape or found_shape
    return Inspected(job, open_network(job, classes, input_shape))


def group_table(job: Job) -> str:
    """Describe the channel groups of a job's network as text."""
    return inspect(job).text()


def _without_missing_weights(job: Job) -> Job:
    if job.net.weights is None:
        return job
    try:
        if expand_path(job.net.weights, "net.weights").is_file():
            return job
        missing = f"net.weights = {job.net.weights}: there is no such file"
    except JobError as error:
        missing = str(error)
    log.warning("%s; the network is looked at without them", missing)
    return job.model_copy(update={"net": job.net.model_copy(update={"weights": None, "new_classifier": False})})


def _of_images(job: Job) -> tuple[int, InputShape]:
    """Number of classes and shape of the images: as their header says, else as the sidecar of the weights does."""
    try:
        return classes_and_shape(job)
    except EkgError as error:
        known = None if job.net.weights is None else read_sidecar(weights_path(job.net)).net
        if known is None:
            raise JobError(
                f"{error}; to look at the network without images, give --input 3x224x224 and --classes 1000"
            ) from error
        channels, height, width = known.input_shape
        size = job.data.image_size
        return known.arguments["num_classes"], (job.data.channels or channels, size or height, size or width)
