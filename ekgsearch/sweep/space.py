"""Assignments of the varied fields: all of a grid, random draws, proposals of a sampler, corners."""

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from ekgsearch.records import canonical_json
from ekgsearch.sections.tune import Entry

Space = Mapping[str, Entry]
Assignment = dict[str, Any]
"""Values of the varied fields that apply, by dotted name."""

MOST_REPEATS = 1000
"""Draws in a row that give nothing new before a space counts as exhausted."""


def assignments(space: Space, fixed: Mapping[str, Any]) -> Iterator[Assignment]:
    """Every combination of listed values, the last field changing fastest; a field that does not apply is left out.

    Args:
        space: fields whose values are listed.
        fixed: fields of the job that conditions may name.
    """
    return _combinations(list(space.items()), dict(fixed), {}, lambda entry: entry.listed or ())


def corners(space: Space, fixed: Mapping[str, Any]) -> Iterator[Assignment]:
    """Every combination of listed values and ends of ranges; arguments as for `assignments`."""
    return _combinations(list(space.items()), dict(fixed), {}, lambda entry: entry.corners)


def chosen(space: Space, fixed: Mapping[str, Any], choose: Callable[[str, Entry], Any]) -> Assignment:
    """One assignment.

    Args:
        space: the varied fields.
        fixed: fields of the job that conditions may name.
        choose: gives the value of a field that applies.
    """
    found: Assignment = {}
    for name, entry in space.items():
        if entry.applies({**fixed, **found}):
            found[name] = choose(name, entry)
    return found


def draws(space: Space, fixed: Mapping[str, Any], seed: int) -> Iterator[Assignment]:
    """Random assignments without repetition; ends where nothing new comes.

    Args:
        space: the varied fields.
        fixed: fields of the job that conditions may name.
        seed: of the draws.
    """
    generator = random.Random(seed)
    seen: set[str] = set()
    while True:
        drawn = (chosen(space, fixed, lambda _, entry: _draw(entry, generator)) for _ in range(MOST_REPEATS))
        new = next((one for one in drawn if canonical_json(one) not in seen), None)
        if new is None:
            return
        seen.add(canonical_json(new))
        yield new


def first(found: Iterator[Assignment], most: int) -> list[Assignment]:
    """At most so many of them."""
    return list(islice(found, most))


def _draw(entry: Entry, generator: random.Random) -> Any:
    if entry.listed is not None:
        return generator.choice(entry.listed)
    assert entry.low is not None
    assert entry.high is not None
    if not entry.log:
        return generator.uniform(entry.low, entry.high)
    value = entry.low * (entry.high / entry.low) ** generator.random()
    return round(value) if entry.is_whole else value


def _combinations(
    entries: list[tuple[str, Entry]],
    known: dict[str, Any],
    found: Assignment,
    values: Callable[[Entry], tuple[Any, ...]],
) -> Iterator[Assignment]:
    if not entries:
        yield found
        return
    (name, entry), *others = entries
    if not entry.applies(known):
        yield from _combinations(others, known, found, values)
        return
    for value in values(entry):
        yield from _combinations(others, {**known, name: value}, {**found, name: value}, values)
