"""Mistakes in a job file, in words: their place, their value and what is allowed."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ekgsearch.fields import kinds_of
from ekgsearch.storage.secrets import names_a_secret, redact
from ekgsearch.strict_yaml import shown

Location: TypeAlias = tuple[str | int, ...]
"""Names that lead to a field; of a section that can be of several kinds, the name of its kind follows on its own."""

MOST_SEARCHED = 1000
"""Characters of a value that are searched for credentials, which takes time that grows with their square."""

_DIGITS = "in decimal digits, without quotes, leading zeros, colons or underscores"

_SECTION = "must be a section; write its fields below it, or leave it out"

_KINDS = {
    "bool_type": "must be true or false",
    "float_type": f"must be a number, {_DIGITS}",
    "int_type": f"must be a whole number, {_DIGITS}",
    "model_attributes_type": _SECTION,
    "model_type": _SECTION,
    "string_too_short": "must not be empty",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list in brackets, such as [0.5, 1] or [l1, l2]",
}
"""What is expected where a value is of another kind, by the type of pydantic's error."""


class Places(Protocol):
    """Says where fields come from; see `jobfile.Fields`."""

    def place(self, location: Sequence[str | int]) -> str:
        """Where a field comes from."""
        ...

    def place_of_words(self, location: Sequence[str | int], words: str) -> str:
        """Where the fields come from that an error about a whole section names."""
        ...


def describe(fields: Places, model: type[BaseModel], detail: ErrorDetails) -> Iterator[str]:
    """One line for a mistake in a field, one for each contradiction between fields."""
    location, kind, value = _written(model, detail["loc"]), detail["type"], detail["input"]
    location = tuple(part for part in location if part != "[key]")  # what pydantic adds where a name is wrong
    if kind == "value_error":
        for words in detail["msg"].removeprefix("Value error, ").splitlines():
            yield f"{fields.place_of_words(location, words)}: {words[:MOST_SEARCHED]}"
        return
    if kind == "union_tag_invalid":
        field = detail["ctx"]["discriminator"].strip("'")
        location, value = (*location, field), value[field]
    place, dotted = fields.place(location), shown(".".join(map(str, location)))
    if kind == "extra_forbidden" and names_a_secret(str(location[-1])):
        yield (
            f"{place}: unknown key {dotted}, which looks like a credential; jobs hold none: set it where the "
            "provider looks for it (environment variables, profile, instance role)"
        )
    elif kind == "extra_forbidden":
        yield f"{place}: {dotted}: unknown key (value {_short(value)}){_did_you_mean(model, detail['loc'])}"
    elif kind == "missing":
        yield f"{place}: {dotted}: missing, and has no default"
    else:
        yield f"{place}: {dotted} = {_short(value)}: {_allowed(detail)}"


def _allowed(detail: ErrorDetails) -> str:
    if detail["type"] == "union_tag_invalid":
        return f"must be one of {detail['ctx']['expected_tags']}".replace("'", "")
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"must have at least {least} {'item' if least == 1 else 'items'}, found {detail['ctx']['actual_length']}"
    return _KINDS.get(detail["type"]) or detail["msg"].removeprefix("Input ").replace("should be", "must be")


def _written(model: type[BaseModel], location: Location) -> Location:
    """A location as it is written in the file: without the kinds of sections."""
    return tuple(part for part, is_kind in _walk(model, location) if not is_kind)


def _walk(model: type[BaseModel], location: Location) -> Iterator[tuple[str | int, bool]]:
    """The parts of a location, and whether each is the kind of a section."""
    kinds: Sequence[type[BaseModel]] = (model,)
    for part in location:
        is_kind = len(kinds) > 1
        yield part, is_kind
        kinds = _next(kinds, part)


def _next(kinds: Sequence[type[BaseModel]], part: str | int) -> Sequence[type[BaseModel]]:
    """The kinds of section that one step of a location leads to."""
    if len(kinds) > 1:
        return tuple(kind for kind in kinds if _name(kind) == part)
    return kinds_of(kinds[0], str(part)) if kinds and part in kinds[0].model_fields else ()


def _name(kind: type[BaseModel]) -> str:
    """The name that chooses a kind of section: the default of its field `method`."""
    return str(kind.model_fields["method"].default)


def _did_you_mean(model: type[BaseModel], location: Location) -> str:
    """What may have been meant by a key that its section does not have."""
    kinds: Sequence[type[BaseModel]] = (model,)
    others: Sequence[type[BaseModel]] = ()
    for part in location[:-1]:
        others, kinds = kinds if len(kinds) > 1 else (), _next(kinds, part)
    if not kinds:
        return ""
    name, allowed = str(location[-1]), sorted(kinds[0].model_fields)
    if owners := [_name(kind) for kind in others if name in kind.model_fields]:
        return f"; it belongs to search.method {' and '.join(owners)}, not to {_name(kinds[0])}: leave it out"
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(allowed)}"


def _short(value: Any) -> str:
    text = redact(_as_written(value)[:MOST_SEARCHED])
    return text if len(text) <= 60 else text[:57] + "..."


def _as_written(value: Any) -> str:
    """A value in YAML's own words, on one line."""
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case tuple():
            return f"[{', '.join(map(_as_written, value))}]"
        case dict():
            return f"{{{', '.join(f'{shown(key)}: {_as_written(item)}' for key, item in value.items())}}}"
    return repr(value)
