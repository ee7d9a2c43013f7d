"""The record of a sweep: which trials were proposed, what they reported and how they ended, in its journal."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from ekgsearch.errors import ResumeError, StorageError
from ekgsearch.pipeline.phase import differences
from ekgsearch.records import canonical_json
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.journal import Journal
from ekgsearch.sweep.job import SweepJob, Trial
from ekgsearch.sweep.proposals import Proposer

log = logging.getLogger(__name__)

State = Literal["finished", "stopped", "failed", "died", "interrupted"]
FINAL = ("finished", "stopped")
"""States of trials that no later call of the command goes on with."""

MOST_REPEATS = 100
"""Proposals in a row that are trials of before; then the space counts as exhausted."""


@dataclass(slots=True)
class Entry:
    """What is known of one trial.

    Attributes:
        number: of its first proposal, from 0.
        trial: its run.
        repeats: numbers of later proposals of the same values.
        reports: accuracy in percent by progress, in the order in which they came.
        state: how it has ended; empty while it has not.
        reason: why it ended so, in words; empty where it finished.
        metrics: what it is judged by, where it finished.
    """

    number: int
    trial: Trial
    repeats: list[int] = field(default_factory=list)
    reports: dict[float, float] = field(default_factory=dict)
    state: State | Literal[""] = ""
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state in FINAL


class Record:
    """A sweep in progress; its journal is held by one driver.

    Attributes:
        entries: trials by name, in the order of their first proposals.
    """

    def __init__(self, sweep: SweepJob, journal: Journal, proposer: Proposer) -> None:
        """Read what the journal says; see `opened`."""
        self.sweep = sweep
        self.entries: dict[str, Entry] = {}
        self._journal = journal
        self._proposer = proposer
        self._next = 0
        self._is_exhausted = False
        for line in journal.lines:
            self._read(line)
        self._open = [entry.trial for entry in self.entries.values() if not entry.is_over]
        for entry in self.entries.values():
            self._teach(entry)

    @property
    def is_writable(self) -> bool:
        """Whether another line can be written; not after the disk has refused one."""
        return self._journal.is_writable

    def events(self) -> Iterator[tuple[Entry, float, float]]:
        """Every report in the order in which it came: trial, progress, accuracy."""
        for line in self._journal.lines:
            if line["kind"] == "report":
                yield self.entries[line["name"]], line["progress"], line["accuracy"]

    @property
    def has_more(self) -> bool:
        """Whether a trial is left that has not ended, or another one may be proposed."""
        most = self.sweep.section.budget.trials
        has_room = most is None or len(self.entries) < most
        return bool(self._open) or (has_room and self._proposer.has(self._next))

    def next_trial(self) -> Trial | None:
        """A trial that an earlier driver has left, else another proposal; None where there are no more."""
        if self._open:
            return self._open.pop(0)
        most, repeats = self.sweep.section.budget.trials, 0
        while repeats < MOST_REPEATS and not self._is_exhausted:
            if most is not None and len(self.entries) >= most:
                break
            number = self._next
            trial = self._proposer.propose(number)
            if trial is None:
                break
            self._write("trial", number=number, name=trial.name, values=trial.values)
            entry = self.entries[trial.name]
            if entry.number == number:
                return trial
            repeats += 1
            self._teach(entry)
        self._is_exhausted = True
        return None

    def report(self, name: str, progress: float, accuracy: float) -> None:
        """Record an accuracy of a trial, once for each progress."""
        if progress not in self.entries[name].reports:
            self._write("report", name=name, progress=progress, accuracy=accuracy)

    def end(self, name: str, state: State, reason: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """Record how a trial has ended."""
        self._write("end", name=name, state=state, reason=reason, metrics=dict(metrics or {}))
        self._teach(self.entries[name])

    def _write(self, kind: str, **fields: Any) -> None:
        self._read(self._journal.append(kind, **fields))

    def _read(self, line: Mapping[str, Any]) -> None:
        match line["kind"]:
            case "trial":
                self._next = line["number"] + 1
                if line["name"] in self.entries:
                    self.entries[line["name"]].repeats.append(line["number"])
                    return
                trial = self.sweep.trial(line["values"])
                if trial.name != line["name"]:
                    raise StorageError(f"{self._journal.path}: trial {line['name']} has the values of {trial.name}")
                self.entries[trial.name] = Entry(number=line["number"], trial=trial)
            case "report":
                self.entries[line["name"]].reports[line["progress"]] = line["accuracy"]
            case "end":
                entry = self.entries[line["name"]]
                entry.state, entry.reason, entry.metrics = line["state"], line["reason"], dict(line["metrics"])

    def _teach(self, entry: Entry) -> None:
        """Let the proposer know how a trial has ended."""
        if entry.is_over:
            for number in (entry.number, *entry.repeats):
                self._proposer.tell(number, entry.metrics if entry.state == "finished" else None)


@contextmanager
def opened(sweep: SweepJob, proposer: Proposer) -> Iterator[Record]:
    """Open the record of a sweep, or begin it.

    Args:
        sweep: the sweep; its folder is made where it is missing.
        proposer: proposes its trials.

    Raises:
        ResumeError: the folder belongs to another sweep, or to one whose file has changed.
        StorageError: another driver holds it, or its journal is damaged.
    """
    make_folder(sweep.folder)
    with Journal.open(sweep.folder / "journal.jsonl") as journal:
        _state(sweep, journal)
        yield Record(sweep, journal, proposer)


def _state(sweep: SweepJob, journal: Journal) -> None:
    """Write the first line of the journal, or compare it with the file."""
    fields = json.loads(canonical_json(sweep.identity()))  # as the journal gives it back: tuples are lists
    if not journal.lines:
        write_atomically(sweep.folder / "tune.yaml", sweep.text().encode())
        journal.append("sweep", fields=fields)
        return
    stated = journal.lines[0]
    if stated["kind"] != "sweep":
        raise ResumeError(
            f"{sweep.folder} is the directory of a run, not of a sweep; choose another output (--set output=...)"
        )
    changed = differences(_named(stated["fields"]), _named(fields))
    if changed:
        raise ResumeError(
            f"{sweep.folder} belongs to another sweep: {'; '.join(changed)}. Put it back as it was, choose another "
            "output (--set output=...), or delete the folder to start again; budget, concurrent, cpus, gpus, "
            "max_failed and the cluster may change"
        )


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by the names that they have in the file."""
    return {**fields["job"], **{f"tune.{name}": value for name, value in fields["tune"].items()}}
