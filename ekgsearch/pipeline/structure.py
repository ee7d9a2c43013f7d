"""Descriptions of the networks that a run writes to files."""

from ekgsearch.artefact.file import Description
from ekgsearch.artefact.recipe import Recipe
from ekgsearch.artefact.slim import Slim
from ekgsearch.pipeline.setup import Setup
from ekgsearch.records import Subnetwork


def describe_slim(setup: Setup, subnetwork: Subnetwork, contents: str) -> Description:
    """Description of a slim network; `contents` says what its weights are."""
    return _describe(setup, Slim(setup.recipe, subnetwork), f"slim network, {contents}")


def describe_unpruned(setup: Setup, contents: str) -> Description:
    """Description of the unpruned network; `contents` says what its weights are."""
    return _describe(setup, setup.recipe, f"unpruned network, {contents}")


def _describe(setup: Setup, recipe: Recipe, contents: str) -> Description:
    return Description(recipe, contents, setup.mean, setup.std, setup.dataset.class_names)
