"""The network of a job: built, with the given weights, its channel groups and its budget."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ekgsearch.artefact.weights import Sidecar, load_weights, read_sidecar, sidecar_path
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import NetworkError
from ekgsearch.experiment import Job, expand_path
from ekgsearch.methods.budget import Budget, set_budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.nets.spec import NetSpec, Padding
from ekgsearch.nets.zoo import build
from ekgsearch.records import Costs
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.sections.data import NetSection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedNetwork:
    """The unpruned network of a job.

    Attributes:
        net: what it is.
        network: the same, built, with the given weights or freshly initialised.
        graph: its channel groups.
        groups: those of them that the search may cut.
        full_costs: its costs under the job's counter.
        budget: what the search aims at.
        sidecar: of the given weights, if there is one.
    """

    net: NetSpec
    network: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    full_costs: Costs
    budget: Budget
    sidecar: Sidecar | None


def open_network(job: Job, num_classes: int, image_shape: Sequence[int]) -> OpenedNetwork:
    """Build the network of a job for images of some classes and shape.

    Args:
        job: the job.
        num_classes: number of logits.
        image_shape: (channels, height, width), pixels.

    Raises:
        NetworkError, BudgetError: weights are missing, damaged or of another network; a budget that cannot be reached.
    """
    sidecar, search = _sidecar(job.net), job.search
    net = net_spec(job.net, sidecar, num_classes, image_shape, search.padding)
    network = build(net, seed=sub_seed(job.seed, "network"))
    if job.net.weights is not None:
        load_weights(network, weights_path(job.net))
    network.eval()
    graph = analyse(network, net.input_shape)
    log.info("%s on %s: %d channel groups, %d frozen", net.name, job.data.name, len(graph.groups), len(graph.frozen))
    for warning in graph.warnings:
        log.warning("%s: %s", net.name, warning)
    groups = chosen_groups(graph, search)
    budget = set_budget(
        graph,
        reduction=search.reduction,
        absolute=search.budget,
        unit=search.unit,
        counter=search.counter,
        groups=groups,
        least_width=search.least_width,
    )
    return OpenedNetwork(net, network, graph, groups, cost(graph, graph.full(), search.counter), budget, sidecar)


def net_spec(
    section: NetSection,
    sidecar: Sidecar | None,
    num_classes: int,
    image_shape: Sequence[int],
    padding: Padding = "torch",
) -> NetSpec:
    """The network of a job: what the job says, else what the weights' sidecar says, else the defaults.

    Args:
        section: what the job says.
        sidecar: of the given weights, if there is one.
        num_classes: number of logits.
        image_shape: (channels, height, width).
        padding: where neither job nor sidecar says one.

    Raises:
        NetworkError: the job and the sidecar name different networks.
    """
    known = sidecar.net if sidecar else None
    for field in ("name", "shortcut", "padding"):
        asked = getattr(section, field)
        if known is not None and asked is not None and asked != getattr(known, field):
            raise NetworkError(
                f"net.{field} = {asked}, but {section.weights} belongs to a network with {field} "
                f"{getattr(known, field)}; change net.{field} or the weights"
            )
    if known is not None and known.num_classes != num_classes:
        raise NetworkError(
            f"{section.weights} has {known.num_classes} classes, but the data set has {num_classes}; "
            "choose the data set that the weights were trained on"
        )
    return NetSpec(
        name=section.name,
        num_classes=num_classes,
        input_shape=(image_shape[0], image_shape[1], image_shape[2]),
        shortcut=section.shortcut or (known.shortcut if known else "projection"),
        padding=section.padding or (known.padding if known else padding),
    )


def weights_path(section: NetSection) -> Path:
    """The file of the given weights."""
    assert section.weights is not None
    return expand_path(section.weights, "net.weights")


def _sidecar(section: NetSection) -> Sidecar | None:
    if section.weights is None:
        return None
    path = weights_path(section)
    if not path.is_file():
        raise NetworkError(f"net.weights = {section.weights}: there is no file {path}")
    return read_sidecar(path) if sidecar_path(path).is_file() else None
