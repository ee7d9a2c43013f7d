"""The network of a job: built, with the given weights, its channel groups and its budget."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ekgsearch.artefact.factory import Factory, factory_of, zoo_factory
from ekgsearch.artefact.file import description_of
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import InputShape, Recipe
from ekgsearch.artefact.sidecar import Sidecar, read_sidecar
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import find_any
from ekgsearch.artefact.weights import load_weights
from ekgsearch.artefact.weights_file import read_weights
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.head import classifier
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.channels.trace import run_example
from ekgsearch.errors import NetworkError
from ekgsearch.experiment import Job
from ekgsearch.fields import expand_path
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.choice import budget_of, chosen_groups
from ekgsearch.nets.options import Padding
from ekgsearch.records import Costs
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.sections.net import NetSection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedNetwork:
    """The unpruned network of a job.

    Attributes:
        recipe: what it is.
        network: the same, built, with the given weights or freshly initialised.
        graph: its channel groups.
        groups: those of them that the search may cut.
        full_costs: its costs under the job's counter.
        budget: what the search aims at.
        sidecar: of the given weights.
    """

    recipe: Recipe
    network: nn.Module
    graph: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    full_costs: Costs
    budget: Budget
    sidecar: Sidecar


def open_network(job: Job, num_classes: int, image_shape: InputShape) -> OpenedNetwork:
    """Build the network of a job for images of some classes and shape.

    Args:
        job: the job.
        num_classes: number of logits.
        image_shape: (channels, height, width), pixels.

    Raises:
        NetworkError, BudgetError: weights are missing, damaged or of another network; a network that cannot be built or
            analysed, or that has other classes; a budget that cannot be reached.
    """
    search = job.search
    sidecar = Sidecar() if job.net.weights is None else read_sidecar(weights_path(job.net))
    recipe = recipe_of_job(job.net, sidecar, num_classes, image_shape, search.padding)
    network = build(recipe, seed=sub_seed(job.seed, "network"), find=find_any).eval()
    _check_logits(network, recipe, num_classes)
    if job.net.weights is not None:
        path = weights_path(job.net)
        _tell_contents(path)
        load_weights(network, path, afresh=_new_classifier(network, recipe, path) if job.net.new_classifier else ())
    graph = analyse(network, recipe.input_shape)
    log.info("%s on %s: %d channel groups, %d frozen", recipe.name, job.data.name, len(graph.groups), len(graph.frozen))
    for warning in graph.warnings:
        log.warning("%s: %s", recipe.name, warning)
    groups = chosen_groups(graph, search)
    budget = budget_of(graph, search, groups)
    return OpenedNetwork(recipe, network, graph, groups, cost(graph, graph.full(), search.counter), budget, sidecar)


def recipe_of_job(
    section: NetSection,
    sidecar: Sidecar,
    num_classes: int,
    image_shape: InputShape,
    padding: Padding = "torch",
) -> Factory:
    """The network of a job: what the job says, else what the weights' sidecar says, else the defaults.

    Args:
        section: what the job says.
        sidecar: of the given weights.
        num_classes: number of logits.
        image_shape: (channels, height, width).
        padding: where neither job nor sidecar says one.

    Raises:
        NetworkError: the job and the sidecar name different networks, or there is no such network.
    """
    known = sidecar.net
    if known is not None:
        _check_known(section, known, num_classes)
    if not section.is_of_zoo:
        return factory_of(section.target, section.arguments, image_shape, num_classes)
    said = known.arguments if known else {}
    return zoo_factory(
        section.target,
        num_classes,
        image_shape,
        section.shortcut or said.get("shortcut", "projection"),
        section.padding or said.get("padding", padding),
    )


def _check_known(section: NetSection, known: Factory, num_classes: int) -> None:
    """Compare what the job says with what the sidecar says."""
    said = {"name": known.target, **known.arguments}
    for field in ("name", "shortcut", "padding"):
        asked = getattr(section, field)
        if asked is not None and asked != said[field]:
            raise NetworkError(
                f"net.{field} = {asked}, but {section.weights} belongs to a network with {field} "
                f"{said[field]}; change net.{field} or the weights"
            )
    if said["num_classes"] != num_classes and not section.new_classifier:
        raise NetworkError(
            f"{section.weights} has {said['num_classes']} classes, but the data set has {num_classes}; choose the data "
            "set that the weights were trained on, or set net.new_classifier: true, which keeps all but the last layer "
            "and trains that one for your classes"
        )


def weights_path(section: NetSection) -> Path:
    """The file of the given weights.

    Raises:
        NetworkError: there is none.
    """
    assert section.weights is not None
    path = expand_path(section.weights, "net.weights")
    if not path.is_file():
        raise NetworkError(f"net.weights = {section.weights}: there is no file {path}")
    return path


def _tell_contents(path: Path) -> None:
    """Log what a file of this package says that it holds, and refuse a network that was cut."""
    description = description_of(path)
    if description is None:
        return
    if isinstance(description.recipe, Slim):
        raise NetworkError(
            f"net.weights = {path} holds a {description.contents}: a network that was cut has other shapes than the "
            "one that a job starts from; give the weights of the unpruned network, or cut this one again in Python "
            "(ekgsearch.load_network)"
        )
    tell = log.warning if "untrained" in description.contents else log.info
    tell("%s holds: %s", path, description.contents)


def _check_logits(network: nn.Module, recipe: Recipe, num_classes: int) -> None:
    """Refuse a network whose output is not one number for each class."""
    output = run_example(network, torch.zeros(2, *recipe.input_shape))
    if not isinstance(output, Tensor) or tuple(output.shape) != (2, num_classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NetworkError(
            f"{recipe.name}: expected logits of {num_classes} classes, shape (2, {num_classes}) for two images, found "
            f"{found}; give the number of classes among net.arguments, or change the network's forward"
        )


def _new_classifier(network: nn.Module, recipe: Recipe, path: Path) -> Collection[str]:
    """Names of the tensors of the last layer, and of classifiers that serve the training only."""
    graph, own = analyse(network, recipe.input_shape), network.state_dict()
    last = classifier(graph).path
    given = read_weights(path, own)
    others = [layer for layer in graph.auxiliary if _differs(f"{layer}.weight", own, given)]
    afresh = [name for name in own if name.rpartition(".")[0] in (last, *others)]
    log.info("%s: %s starts afresh, everything else as in %s", recipe.name, last, path.name)
    return afresh


def _differs(name: str, own: dict[str, Tensor], given: dict[str, Tensor]) -> bool:
    return name in own and name in given and own[name].shape != given[name].shape
