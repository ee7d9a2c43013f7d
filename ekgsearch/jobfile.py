"""Read a job from YAML: every mistake becomes one line with its place, its value and what is allowed."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.storage.secrets import names_a_secret, redact

Model = TypeVar("Model", bound=BaseModel)


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read and check a job file.

    Args:
        path: the YAML file.
        overrides: ``path=value`` settings that replace fields, e.g. ``search.reduction=0.45``; values are YAML.

    Raises:
        JobError: the file cannot be read or a field is not allowed; one line per mistake.
    """
    fields = load_fields(path, overrides)
    for command in ("bench", "study"):
        if command in fields:
            raise JobError(f"{path} is for another command: ekgsearch {command} {path}")
    return load_model(path, Job, overrides)


def load_model(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into a pydantic model; arguments and errors as for `load_job`."""
    fields = load_fields(path, overrides)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        lines = [_describe(path, model, root, detail) for detail in error.errors()]
        raise JobError(*lines) from error


def load_fields(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of sections, unchecked; arguments and errors as for `load_job`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: the job file cannot be read: {error}") from error
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise JobError(f"{path}: expected sections such as `net:` and `search:`, found {type(fields).__name__}")
    for override in overrides:
        _override(fields, override)
    return fields


def fields_text(model: BaseModel) -> str:
    """YAML text of a job or of other checked settings with every default; `load_model` reads it back."""
    fields = yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# Every default written out.\n{fields}"


def _override(fields: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise JobError(f"--set {override}: expected path=value, e.g. search.reduction=0.45")
    node: Any = fields
    for depth, key in enumerate(keys[:-1]):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise JobError(f"--set {override}: {'.'.join(keys[: depth + 1])} is a value, not a section")
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"--set {override}: {text!r} is not a YAML value") from error


def _describe(path: Path, model: type[BaseModel], root: yaml.Node | None, detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    dotted = ".".join(location)
    line = _line_of(root, location)
    place = f"{path}:{line}" if line else str(path)
    match detail["type"]:
        case "extra_forbidden" if any(map(names_a_secret, location)):
            return (
                f"{place}: unknown key {dotted}, which looks like a credential; jobs hold none: set it where the "
                "provider looks for it (environment variables, profile, instance role)"
            )
        case "extra_forbidden":
            return f"{place}: {dotted}: unknown key (value {_short(detail['input'])}){_did_you_mean(model, location)}"
        case "missing":
            return f"{place}: {dotted}: missing, and has no default"
        case "value_error":
            return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
        case _:
            allowed = detail["msg"].removeprefix("Input ").replace("should be", "must be")
            return f"{place}: {dotted} = {_short(detail['input'])}: {allowed}"


def _line_of(root: yaml.Node | None, location: Sequence[str]) -> int | None:
    """Line of the deepest part of a location that stands in the file, from 1."""
    line, node = None, root
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        entry = next(((key, value) for key, value in node.value if key.value == part), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def _did_you_mean(model: type[BaseModel], location: Sequence[str]) -> str:
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    allowed = sorted(model.model_fields)
    close = difflib.get_close_matches(location[-1], allowed, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(allowed)}"


def _short(value: Any) -> str:
    text = redact(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
