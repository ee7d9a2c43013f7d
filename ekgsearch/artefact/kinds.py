"""Every kind of recipe, and the one function that builds any of them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ekgsearch.artefact.factory import Factory
from ekgsearch.artefact.recipe import Constructor, Making, Recipe
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import find_known, is_own, source_of
from ekgsearch.errors import NetworkError

KINDS: Mapping[str, type[Recipe]] = {kind.kind: kind for kind in (Factory, Slim)}

MOST_NESTED = 16
"""Recipes within each other."""


def build(recipe: Recipe, *, seed: int | None = None, find: Callable[[str], Constructor] = find_known) -> nn.Module:
    """Build a network.

    Args:
        recipe: what it is.
        seed: makes its fresh weights a function of the recipe and this number and leaves torch's generator untouched;
            None draws from torch's global generator.
        find: finds classes and functions by their targets; by default none of anybody's own code runs.

    Raises:
        NetworkError: it cannot be built, or names code that must not run.
    """
    return recipe.make(Making(find, seed))


def changed_code(recipe: Recipe, find: Callable[[str], Constructor]) -> str:
    """The target of somebody's own code within a recipe that is other code by now; empty where there is none.

    Args:
        recipe: what was written down.
        find: finds the code as it is.

    Raises:
        NetworkError: it must not run, or is not there.
    """
    while isinstance(recipe, Slim):
        recipe = recipe.base
    if not isinstance(recipe, Factory) or not is_own(recipe.target) or not recipe.source:
        return ""
    return recipe.target if source_of(recipe.target, find(recipe.target)) != recipe.source else ""


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain form for JSON."""
    return {"kind": recipe.kind, **recipe.to_dict()}


def recipe_of(values: Any, *, level: int = 0) -> Recipe:
    """Read the plain form of a recipe; nothing of it is run.

    Raises:
        NetworkError: it is none.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS or level > MOST_NESTED:
        raise NetworkError(
            f"expected a recipe of one of the kinds {', '.join(KINDS)}, at most {MOST_NESTED} within each other, found "
            f"{str(values)[:80]}"
        )
    rest = {name: value for name, value in values.items() if name != "kind"}
    return KINDS[kind].from_dict(rest, lambda inner: recipe_of(inner, level=level + 1))
