"""Read a job from YAML: every mistake becomes one line with its place, its value and what is allowed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import Place, Section
from ekgsearch.mistakes import MOST_SEARCHED, describe
from ekgsearch.storage.secrets import names_a_secret, redact
from ekgsearch.strict_yaml import MOST_BYTES, MOST_LEVELS, Document, StrictYamlError, read_yaml, shown, write_yaml

Model = TypeVar("Model", bound=Section)

MOST_LINES = 50
"""Mistakes of one file that are told; of more, only the number."""

_NAMED_FIELD = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+|[a-z][a-z0-9_]*(?= = |: )")
"""A field in the words of an error: a dotted name, or one in front of its value."""


@dataclass(frozen=True, slots=True)
class Override:
    """A setting of the command line, ``path=value``.

    Attributes:
        keys: the path.
        value: what takes the place of the field.
        name: how errors call it, without what may be a credential.
        in_file: whether the file itself says it, as a value of a sweep.
    """

    keys: tuple[str, ...]
    value: Any
    name: str
    in_file: bool = False


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a YAML file, unchecked, with the settings of the command line in their places.

    Attributes:
        path: the file.
        values: the fields by name, sections as dicts.
        document: the file as it was read.
        overrides: the settings.
    """

    path: Path
    values: dict[str, Any]
    document: Document
    overrides: tuple[Override, ...]

    def with_settings(self, settings: Sequence[Override]) -> "Fields":
        """The same fields with further settings in their places."""
        values = self.values
        for setting in settings:
            values = _replaced(values, setting)
        return replace(self, values=values, overrides=(*self.overrides, *settings))

    def only(self, name: str) -> "Fields":
        """One section alone."""
        return replace(self, values={name: self.values[name]})

    def without(self, name: str) -> "Fields":
        """All but one section."""
        return replace(self, values={key: value for key, value in self.values.items() if key != name})

    def place(self, location: Sequence[str | int]) -> str:
        """Where a field comes from: ``--set path=value``, else the file and its line."""
        keys = tuple(location)
        for override in reversed(self.overrides):  # one that sets a part comes after one that sets the section
            shared = min(len(keys), len(override.keys))  # a part of the setting, or a section that it leads through
            if shared and keys[:shared] == override.keys[:shared]:
                return override.name
        line = self.document.line(location)
        return f"{self.path}:{line}" if line else str(self.path)

    def place_of_words(self, location: Sequence[str | int], words: str) -> str:
        """Where the fields come from that an error about a whole section names: a setting, else the first in the file.

        Args:
            location: the section; empty for the whole file.
            words: the error.
        """
        named = sorted((tuple(name.split(".")) for name in _NAMED_FIELD.findall(words)), key=len, reverse=True)
        for override in self.overrides:
            if any(keys[: len(override.keys)] == override.keys for keys in named):
                return override.name
        root = self.document.value or {}
        written = (keys for keys in named if keys[0] in root and _is_in(root, keys))
        return self.place(next(written, location))

    def check(self, model: type[Model]) -> Model:
        """Check all fields, and make relative paths absolute.

        Raises:
            JobError: a field is not allowed; one line per mistake.
        """
        try:
            checked = model.model_validate(self.values)
        except ValidationError as error:
            details = error.errors(include_url=False)
            lines = [line for detail in details[:MOST_LINES] for line in describe(self, model, detail)]
            more = len(details) - MOST_LINES
            raise JobError(*lines, *([f"{self.path}: and {more} more"] if more > 0 else [])) from error
        return checked.rebased(self._base)

    def _base(self, place: Place) -> Path:
        """Folder of a relative path: the working directory for one from the command line, else that of the file."""
        given = any(place[: len(override.keys)] == override.keys for override in self.overrides if not override.in_file)
        return Path.cwd() if given else self.path.absolute().parent


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read and check a job file.

    Args:
        path: the YAML file.
        overrides: ``path=value`` settings that replace fields, e.g. ``search.reduction=0.45``; values are YAML.

    Raises:
        JobError: the file cannot be read or a field is not allowed; one line per mistake.
    """
    fields = load_fields(path, overrides)
    for command in ("bench", "study", "tune"):
        if command in fields.values:
            raise JobError(f"{path} is for another command: ekgsearch {command} {path}")
    return fields.check(Job)


def load_model(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into a pydantic model; arguments and errors as for `load_job`."""
    return load_fields(path, overrides).check(model)


def load_fields(path: Path, overrides: Sequence[str] = ()) -> Fields:
    """Read a YAML file of sections, unchecked; arguments and errors as for `load_job`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError is a path with a NUL character
        raise JobError(f"{path}: the job file cannot be read: {error}") from error
    try:
        document = read_yaml(data)
    except StrictYamlError as error:
        lines = [f"{path}{f':{one.line}' if one.line else ''}: {one.text}" for one in error.mistakes]
        raise JobError(*lines[:MOST_LINES]) from error
    values = document.value
    if not isinstance(values, dict):
        found = "nothing" if values is None else "a list" if isinstance(values, tuple) else "one value"
        raise JobError(f"{path}: expected sections such as `net:` and `search:`, found {found}")
    settings: list[Override] = []
    for text in overrides:
        setting = _read_override(text)
        for other in settings:
            if other.keys[: len(setting.keys)] == setting.keys:
                raise JobError(f"{setting.name}: sets again what {other.name} sets; leave one of them out")
        settings.append(setting)
        values = _replaced(values, setting)
    return Fields(path, values, document, tuple(settings))


def job_of_text(text: str) -> Job:
    """The job that `fields_text` has written out."""
    return Job.model_validate(read_yaml(text).value)


def fields_text(model: BaseModel) -> str:
    """YAML text of a job or of other checked settings with every default; `load_model` reads it back."""
    return f"# Every default written out.\n{write_yaml(model.model_dump(mode='json'))}"


def _read_override(text: str) -> Override:
    dotted, separator, value = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    name = f"--set {shown(dotted if any(map(names_a_secret, keys)) else redact(text[:MOST_SEARCHED]))}"
    if not separator or not all(keys) or len(keys) > MOST_LEVELS:
        raise JobError(f"{name}: expected path=value, e.g. search.reduction=0.45")
    try:
        return Override(keys, read_yaml(value).value, name)
    except StrictYamlError as error:
        raise JobError(*(f"{name}: {one.text}" for one in error.mistakes[:MOST_LINES])) from error


def _replaced(fields: dict[str, Any], override: Override) -> dict[str, Any]:
    """A copy of nested fields with one of them replaced; sections on the way to it are made."""
    first, *rest = override.keys
    if not rest:
        return {**fields, first: override.value}
    section = fields.get(first)
    if section is not None and not isinstance(section, dict):
        raise JobError(f"{override.name}: {shown(first)} is a value, not a section")
    return {**fields, first: _replaced(section or {}, Override(tuple(rest), override.value, override.name))}


def _is_in(fields: Any, keys: Sequence[str | int]) -> bool:
    for key in keys:
        if not isinstance(fields, dict) or key not in fields:
            return False
        fields = fields[key]
    return True
