"""The timeline of a sweep: lines in a file, made into spans of time in which a trial worked at a phase."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ekgsearch.storage.files import read_bytes, write_error
from ekgsearch.sweep.course import Step
from ekgsearch.sweep.rows import SpanRow

TIMELINE_FILE = "timeline.jsonl"

_LASTING = ("begun", "committed")


class Timeline:
    """Writes down what happened when; nothing is decided by it."""

    def __init__(self, folder: Path) -> None:
        """Begin another call of the command."""
        self._path = folder / TIMELINE_FILE
        self._write({"event": "call", "seconds": time.time()})

    def add(self, run: str, step: Step) -> None:
        """Write down the begin or the end of a phase, or the end of a trial."""
        if step.event in _LASTING or step.is_end:
            self.end(run, step.event, seconds=step.seconds, phase=step.phase, producer=step.producer)

    def end(self, run: str, event: str, *, seconds: float | None = None, phase: str = "", producer: str = "") -> None:
        """Write down that something happened to a trial, by default now."""
        at = time.time() if seconds is None else seconds
        self._write({"run": run, "event": event, "phase": phase, "producer": producer, "seconds": at})

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line) + "\n"
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise write_error(self._path, error, len(text)) from error


def spans(sweep: str, folder: Path) -> list[SpanRow]:
    """Read the timeline of a sweep; a line that a kill has cut off is left out."""
    path = folder / TIMELINE_FILE
    return list(_spans(sweep, _lines(path))) if path.is_file() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in read_bytes(path).decode(errors="replace").splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            continue


def _spans(sweep: str, lines: Iterable[Mapping[str, Any]]) -> Iterator[SpanRow]:
    call, start, last = 0, 0.0, 0.0
    begun: dict[str, tuple[str, float]] = {}

    def span(run: str, end: str, seconds: float, producer: str) -> SpanRow:
        phase, began = begun.pop(run)
        return SpanRow(
            sweep=sweep,
            run=run,
            phase=phase,
            call=call,
            start_seconds=began - start,
            end_seconds=seconds - start,
            producer=producer or run,
            end=end,
        )

    for line in lines:
        if line["event"] == "call":
            yield from (span(run, "interrupted", last, "") for run in list(begun))
            call, start = call + 1, line["seconds"]
        elif line["event"] == "begun":
            begun[line["run"]] = (line["phase"], line["seconds"])
        elif line["run"] in begun:
            yield span(line["run"], line["event"], line["seconds"], line["producer"])
        last = line["seconds"]
    yield from (span(run, "interrupted", last, "") for run in list(begun))
