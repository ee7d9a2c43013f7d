"""Readers of journal lines."""

from collections.abc import Mapping, Sequence
from typing import Any

_CHAIN = ("seq", "kind", "prev", "hash")


def content(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a line records, without its kind and its place in the chain."""
    return {name: value for name, value in line.items() if name not in _CHAIN}


def newest_statement(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The line that says what a run is by now; None where it has not begun."""
    return next((line for line in reversed(lines) if line["kind"] in ("run", "job")), None)
