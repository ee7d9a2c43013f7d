"""The base of job sections, the types of their fields, and the marks on them."""

import os
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from ekgsearch.errors import JobError

MOST = 2**31 - 1
"""Largest count of anything: what torch, Ray and parquet take in 32 bits."""

Share = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[int, Field(ge=1, le=MOST)]
Cost = Annotated[int, Field(ge=1, le=2**63 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed that torch's generators and tensors of int64 take."""

Threads = Annotated[int, Field(ge=1, le=1024)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(ge=1, le=1_000_000)]
Amount = Annotated[float, Field(ge=1e-4, le=1024)]
"""Cores or GPUs of one worker; Ray counts in ten-thousandths."""

Text = Annotated[str, Field(min_length=1)]
"""A name or an address that is given; null, not an empty text, leaves it out."""


class Mark(Enum):
    """Marks of a field, given once, in its annotation; a field without one can change a result."""

    NO_RESULT = "it changes no result of a phase: where things lie, where work runs, when a run gives up"
    BY_CONTENT = "it names files; their content can change a result, their place cannot"
    PATH = "it is a path; a relative one belongs to the folder of the file that it is written in"


Place = tuple[str, ...]
"""Names that lead to a field, sections first."""


class Section(BaseModel):
    """A part of a job: frozen, and refusing keys it does not know and values of another kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    def identity(self) -> dict[str, Any]:
        """Values of all fields that can change a result, as JSON; sections within it are dicts."""
        values = self.model_dump(mode="json")
        return {
            name: getattr(self, name).identity() if isinstance(getattr(self, name), Section) else values[name]
            for name in type(self).model_fields
            if not {Mark.NO_RESULT, Mark.BY_CONTENT} & marks_of(type(self), name)
        }

    def rebased(self, base_of: Callable[[Place], Path], place: Place = ()) -> Self:
        """A copy whose relative paths are absolute.

        Args:
            base_of: folder that a relative path in a field belongs to.
            place: where this section stands.
        """
        changes: dict[str, Any] = {}
        for name in type(self).model_fields:
            value, here = getattr(self, name), (*place, name)
            if isinstance(value, Section):
                changes[name] = value.rebased(base_of, here)
            elif value is not None and Mark.PATH in marks_of(type(self), name):
                base = base_of(here)
                is_one = isinstance(value, str)
                changes[name] = absolute(value, base) if is_one else tuple(absolute(one, base) for one in value)
        return self.model_copy(update=changes)


def marks_of(section: type[BaseModel], name: str) -> frozenset[Mark]:
    """The marks of a field."""
    return frozenset(mark for mark in section.model_fields[name].metadata if isinstance(mark, Mark))


def kinds_of(section: type[BaseModel], name: str) -> tuple[type[BaseModel], ...]:
    """The kinds of section that a field can hold; none where it holds a value."""
    kind = section.model_fields[name].annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel))


def places(section: type[BaseModel], start: Place = ()) -> Iterator[tuple[Place, frozenset[Mark]]]:
    """Every field of a section and of those within it, with its marks; a marked section marks all that is in it."""
    for name in section.model_fields:
        kinds, found = kinds_of(section, name), marks_of(section, name)
        inner = {place: marks for kind in kinds for place, marks in places(kind, (*start, name))}
        if kinds:
            yield from ((place, found | marks) for place, marks in inner.items())
        else:
            yield (*start, name), found


def absolute(text: str, base: Path) -> str:
    """A path below a folder, unless it begins with a variable or with `~`, or is the address of a store."""
    return text if text.startswith(("$", "~")) or "://" in text else os.path.normpath(base / text)


def expand_path(text: str, field: str) -> Path:
    """Expand ``$VARIABLES`` and ``~`` in a path of the job.

    Raises:
        JobError: a variable is not set.
    """
    missing = [name for name in re.findall(r"\$\{?(\w+)\}?", text) if name not in os.environ]
    if missing:
        raise JobError(f"{field} = {text}: the environment variable {missing[0]} is not set; set it or give a path")
    return Path(os.path.expandvars(text)).expanduser()
