"""The file of a sweep, checked: a job, the fields that are varied, and every trial as a job of its own."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job, flat
from ekgsearch.fields import Mark, Section, places
from ekgsearch.jobfile import Fields, Override, load_fields
from ekgsearch.records import canonical_json
from ekgsearch.sections.tune import MOST_UNASKED, TuneSection
from ekgsearch.strict_yaml import shown, write_yaml
from ekgsearch.sweep.space import Assignment, assignments, corners, draws, first

TRIALS = "trials"
"""Folder of the run directories of a sweep."""

STOPPED_FILE = "stopped.txt"
"""In the run directory of a trial that did not finish: who has stopped it, and after what."""

PHASES = "phases"

NAME_LENGTH = 12
"""Hexadecimal digits of the name of a trial: two of a thousand trials are called alike once in 500 million sweeps."""

MOST_CORNERS = 1000
"""Combinations of the ends of ranges that are checked before a sweep whose trials are not known starts."""

MOST_ORDERED = 4096
"""Trials of a grid that are put in order; those beyond are never reached."""

_OWN_FIELDS = ("output", "search_run")
"""Fields of the job that a sweep sets itself."""


class _File(Section):
    """What is read of the file of a sweep before its trials are."""

    tune: TuneSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: hash of what it varies; the name of its run directory.
        values: of the varied fields.
        job: the run.
    """

    name: str
    values: Assignment
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepJob:
    """A sweep before it starts.

    Attributes:
        section: how it goes.
        fields: those of the job, unchecked, as every trial has them.
        folder: where it writes, absolute.
    """

    section: TuneSection
    fields: Fields
    folder: Path

    @property
    def fixed(self) -> dict[str, Any]:
        """Fields that the file gives, by dotted name; conditions may name them."""
        given = flat(self.fields.values)
        if "search" in self.fields.values and "search.method" not in given:
            given["search.method"] = "ekg"
        return given

    def trial(self, values: Assignment) -> Trial:
        """The run in which the varied fields have these values.

        Raises:
            JobError: it is no valid job; one line per mistake.
        """
        name = hashlib.sha256(canonical_json(values).encode()).hexdigest()[:NAME_LENGTH]
        values = {path: _frozen(values[path]) for path in self.section.space if path in values}
        settings = [_setting(path, value) for path, value in values.items()]
        own = [Override(("output",), str(self.folder / TRIALS / name), "output")]
        if "phases" not in self.fields.values:
            own.append(Override(("phases", "uri"), str(self.folder / PHASES), "phases.uri"))
        try:
            return Trial(name=name, values=values, job=self.fields.with_settings([*settings, *own]).check(Job))
        except JobError as error:
            raise JobError(*(f"{line} (trial {described(values)})" for line in error.args)) from error

    def known_trials(self) -> list[Trial] | None:
        """Every trial in order, checked; None where earlier ones decide about later ones. A grid comes in rounds.

        Raises:
            JobError: a trial is no valid job, or the grid has more trials than anybody has asked for.
        """
        section, most = self.section, self.section.budget.trials
        if section.algorithm == "optuna":
            return None
        if section.algorithm == "random":
            assert most is not None, "the section asks for it"
            return self._checked(first(draws(section.space, self.fixed, section.seed), most))
        found = first(assignments(section.space, self.fixed), MOST_ORDERED)
        if most is None and len(found) > MOST_UNASKED:
            raise JobError(
                f"{self.fields.place(('tune', 'space'))}: this grid has more than {MOST_UNASKED} trials; give "
                "tune.budget.trials, which takes the first so many, fewer values, or tune.algorithm random"
            )
        return self._checked(in_rounds(found)[:most])

    def any_trial(self) -> Trial:
        """One of its trials, to see what all have in common."""
        return self.trial(next(corners(self.section.space, self.fixed)))

    def one_of_each_kind(self) -> list[Trial]:
        """The first trial with each set of varied fields; their runs lie next to the folder of the sweep."""
        found: dict[tuple[str, ...], Assignment] = {}
        for values in first(corners(self.section.space, self.fixed), MOST_CORNERS):
            found.setdefault(tuple(values), values)
        trials = [self.trial(values) for values in found.values()]
        places = [self.folder.with_name(f"{self.folder.name}_{trial.name}") for trial in trials]
        return [
            replace(trial, job=trial.job.model_copy(update={"output": str(place)}))
            for trial, place in zip(trials, places, strict=True)
        ]

    def check_corners(self) -> None:
        """Check the combinations of all listed values and ends of ranges, as far as there are not too many.

        Raises:
            JobError: one of them is no valid job.
        """
        self._checked(first(corners(self.section.space, self.fixed), MOST_CORNERS))

    def text(self) -> str:
        """The file of the sweep, with the settings of the command line in their places."""
        return write_yaml({**self.fields.values, "tune": self.section.model_dump(mode="json", exclude_defaults=True)})

    def identity(self) -> dict[str, Any]:
        """What a sweep may not change on its way: its own section, and every field that can change a result."""
        marks = dict(places(Job))
        kept = {
            name: value
            for name, value in flat(self.fields.values).items()
            if not {Mark.NO_RESULT, Mark.BY_CONTENT} & marks.get(tuple(name.split(".")), frozenset())
        }
        tune = {name: value for name, value in self.section.identity().items() if name != "space"}
        space = {
            name: entry.model_dump(mode="json", exclude_defaults=True) for name, entry in self.section.space.items()
        }
        return {"job": kept, "tune": {**tune, "space": space}}

    def _checked(self, found: Sequence[Assignment]) -> list[Trial]:
        """Check trials; of many mistakes that are alike, the first is told."""
        trials: list[Trial] = []
        mistakes: dict[str, str] = {}
        for values in found:
            try:
                trials.append(self.trial(values))
            except JobError as error:
                for line in error.args:
                    mistakes.setdefault(_without_values(str(line)), str(line))
        if mistakes:
            raise JobError(*mistakes.values())
        return trials


def in_rounds(found: Sequence[Assignment]) -> list[Assignment]:
    """One trial of every search first, then the second of every search, and so on.

    Trials that run at the same time then rarely wait for each other's search, and later ones find it done.
    """
    groups: dict[str, list[Assignment]] = {}
    for values in found:
        groups.setdefault(canonical_json({name: values[name] for name in values if _decides(name)}), []).append(values)
    return [one for round_ in zip_longest(*groups.values()) for one in round_ if one is not None]


def _decides(name: str) -> bool:
    """Whether the decisions of a search may depend on a field; how far it goes does not change them."""
    return name.partition(".")[0] not in ("finetune", "cluster") and name not in ("search.reduction", "search.budget")


def _without_values(line: str) -> str:
    """What a mistake is about, the same for all values of a field."""
    place, _, words = line.rpartition(" (trial ")[0].partition(": ")
    return f"{place.partition(' = ')[0]}: {re.sub(r'=? ?value [^)]*|= [^:;]*', '', words)}"


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepJob:
    """Read and check the file of a sweep; its trials are checked where they are asked for.

    Args:
        path: the YAML file.
        overrides: ``path=value`` settings that replace fields.

    Raises:
        JobError: the file cannot be read, or a field is not allowed; one line per mistake.
    """
    return sweep_of(load_fields(path, overrides))


def sweep_of(fields: Fields) -> SweepJob:
    """The sweep that unchecked fields describe; errors as for `load_sweep`."""
    if "tune" not in fields.values:
        raise JobError(
            f"{fields.path}: has no section tune, so there is nothing to vary; run it with: ekgsearch run {fields.path}"
        )
    section = fields.only("tune").check(_File).tune
    own = [name for name in section.space if name.partition(".")[0] in (*_OWN_FIELDS, "phases", "tune")]
    if own:
        raise JobError(f"{fields.place(('tune', 'space', own[0]))}: {own[0]} cannot be varied: a sweep sets it itself")
    base = fields.without("tune")
    if base.values.get("search_run") is not None:
        raise JobError(f"{fields.place(('search_run',))}: a sweep shares searches by itself; leave search_run out")
    sweep = SweepJob(section=section, fields=base, folder=Path())
    try:
        assignment = next(corners(section.space, sweep.fixed))
        first_job = base.with_settings([_setting(name, value) for name, value in assignment.items()]).check(Job)
    except JobError as error:
        raise JobError(*(f"{line} (trial {described(assignment)})" for line in error.args)) from error
    return SweepJob(section=section, fields=base, folder=first_job.run_dir)


def described(values: Mapping[str, Any]) -> str:
    """An assignment in words: ``search.method ekg, search.step 0.2``."""
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def short_label(values: Mapping[str, Any], varied: Sequence[str]) -> str:
    """An assignment in few words, the last parts of its fields: ``ekg, step 0.2``."""
    return ", ".join(_labels(values, varied))


def _labels(values: Mapping[str, Any], varied: Sequence[str]) -> Iterator[str]:
    for name in varied:
        if name in values:
            last = name.rpartition(".")[2]
            yield _plain(values[name]) if last in ("method", "name") else f"{last} {_plain(values[name])}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical_json(value)


def _frozen(value: Any) -> Any:
    """A value as a YAML file gives it: lists of a journal become tuples."""
    match value:
        case list() | tuple():
            return tuple(_frozen(item) for item in value)
        case dict():
            return {key: _frozen(item) for key, item in value.items()}
    return value


def _setting(name: str, value: Any) -> Override:
    text = f"tune.space {name} = {_plain(value)}"
    return Override(tuple(name.split(".")), value, shown(text), in_file=True)
