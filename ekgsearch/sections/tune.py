"""Section of a sweep: the fields that are varied, who proposes trials, what stops them, and what they are judged by."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ekgsearch.fields import Amount, Count, Mark, Positive, Section, Seed, Text

Metric = Literal["accuracy", "kept_macs", "kept_params", "latency", "device_hours"]
Direction = Literal["max", "min"]

MOST_UNASKED = 256
"""Trials of a grid that nobody has limited."""

_PLACES = 12
"""Decimal places of the values of a range with a step: 0.1 + 2 x 0.1 is 0.3 there."""


class Entry(Section):
    """Values of one field of the job: some of a list, or those of a range."""

    values: tuple[Any, ...] | None = Field(None, min_length=1, description="values to choose from")
    low: int | float | None = Field(None, description="lowest value of a range")
    high: int | float | None = Field(None, description="highest value of a range")
    step: int | float | None = Field(None, gt=0, description="distance between the values of a range")
    log: bool = Field(False, description="whether a range without a step is drawn by its logarithm")
    where: dict[Text, Any] = Field(
        default_factory=dict,
        description="fields and the values that they must have for this one to be set, such as {search.method: ekg}; "
        "a list stands for any of its values",
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Entry":
        is_range = self.low is not None and self.high is not None
        if (self.values is not None) == is_range or (self.low is None) != (self.high is None):
            raise ValueError("give either values, or low and high")
        if self.values is not None and (self.step is not None or self.log):
            raise ValueError("step and log belong to a range, which has low and high")
        if self.log and self.step is not None:
            raise ValueError("give step or log, not both")
        if is_range and not self.low < self.high:  # type: ignore[operator]  # neither is None
            raise ValueError(f"low = {self.low} must be less than high = {self.high}")
        if self.log and self.low <= 0:  # type: ignore[operator]  # a range has both
            raise ValueError(f"log needs values above 0, found low = {self.low}")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether a range has whole numbers only."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All values in order; None for a range of any number."""
        if self.values is not None:
            return self.values
        assert self.low is not None
        assert self.high is not None
        if self.step is None:
            return tuple(range(int(self.low), int(self.high) + 1)) if self.is_whole and not self.log else None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        found = (self.low + index * self.step for index in range(count))
        return tuple(found) if self.is_whole else tuple(round(float(number), _PLACES) for number in found)

    @property
    def corners(self) -> tuple[Any, ...]:
        """All values, or the two ends of a range of any number."""
        return (self.low, self.high) if self.listed is None else self.listed

    def applies(self, known: Mapping[str, Any]) -> bool:
        """Whether the field is set.

        Args:
            known: fields of the trial so far, by their dotted names.
        """
        return all(
            known.get(name) in wanted if isinstance(wanted, tuple | list) else known.get(name) == wanted
            for name, wanted in self.where.items()
        )


_MARKS_OF_AN_ENTRY = {"values", "low", "high", "where"}
"""Keys that tell an entry from a section of the job; `step` is a field of one, too."""


def _by_dotted_name(space: Any, prefix: str = "") -> Any:
    """Fields of nested sections by their dotted names.

    Of a field that is given twice, as by a setting of the command line, the later values count; its condition stays.
    """
    if not isinstance(space, dict):
        return space
    found: dict[Any, Any] = {}
    for name, value in space.items():
        if isinstance(value, dict) and value and not value.keys() & _MARKS_OF_AN_ENTRY:
            inner = _by_dotted_name(value, f"{prefix}{name}.")
        else:
            inner = {f"{prefix}{name}": value}
        found |= {key: _merged(found.get(key), item) for key, item in inner.items()}
    return found


def _merged(before: Any, value: Any) -> Any:
    before, value = _as_entry(before), _as_entry(value)
    if not isinstance(before, dict) or not isinstance(value, dict):
        return value
    return {**{name: item for name, item in before.items() if name == "where"}, **value}


def _as_entry(value: Any) -> Any:
    """A list alone stands for its values."""
    if isinstance(value, tuple | list):
        return {"values": tuple(value)}
    if value is None or isinstance(value, dict | Entry):
        return value
    raise ValueError(f"expected a list of values, or low and high, found {value!r}")


class Budget(Section):
    """What a sweep may cost; null is no limit."""

    trials: Positive | None = Field(None, description="most trials; a grid has its own number otherwise")
    device_hours: float | None = Field(None, gt=0, description="device-hours of all trials together")
    wall_minutes: float | None = Field(None, gt=0, description="minutes of one call of the command")


class TuneSection(Section):
    """A sweep: many runs of one job that differ in some fields."""

    space: Annotated[dict[Text, Annotated[Entry, BeforeValidator(_as_entry)]], BeforeValidator(_by_dotted_name)] = (
        Field(
            min_length=1,
            description="fields by dotted name, such as search.beta, each with a list of values or a range",
        )
    )
    algorithm: Literal["grid", "random", "optuna"] = Field(
        "grid", description="grid: every combination; random: draws; optuna: proposals that learn from earlier trials"
    )
    scheduler: Literal["none", "asha"] = Field(
        "none",
        description="asha: a trial whose accuracy after 1, factor, factor x factor ... epochs (times grace_epochs) is "
        "not among the best 1/factor of those that have come so far is stopped",
    )
    grace_epochs: Positive = Field(1, description="epochs of the fine-tuning before asha may stop a trial")
    factor: int = Field(3, ge=2, le=100, description="asha lets one of so many trials go on from each halt")
    metrics: dict[Metric, Direction] = Field(
        {"accuracy": "max", "kept_macs": "min"},
        min_length=1,
        description="what trials are judged by; several give a Pareto front. device_hours of a trial: what it would "
        "cost by itself; latency: of one image, measured when no trial runs",
    )
    seed: Seed = Field(1, description="seed of the proposals of random and optuna")
    budget: Annotated[Budget, Mark.NO_RESULT] = Field(default_factory=Budget, description="what the sweep may cost")
    concurrent: Annotated[Positive | None, Mark.NO_RESULT] = Field(
        None, description="most trials at a time; null: as many as there is room for"
    )
    cpus: Annotated[Amount | None, Mark.NO_RESULT] = Field(
        None, description="cores that a trial in one process holds; null: its threads"
    )
    gpus: Annotated[float, Mark.NO_RESULT] = Field(
        0, ge=0, le=1024, description="GPUs that a trial in one process holds; below 1 several trials share one"
    )
    max_failed: Annotated[Count, Mark.NO_RESULT] = Field(3, description="trials that may fail before the sweep ends")

    @model_validator(mode="after")
    def _agree(self) -> "TuneSection":
        if found := list(self._contradictions()):
            raise ValueError("\n".join(found))
        return self

    def _contradictions(self) -> Iterator[str]:
        names = list(self.space)
        for number, (name, entry) in enumerate(self.space.items()):
            later = [other for other in entry.where if other in names[number:]]
            if later:
                yield f"tune.space {name}: its condition {later[0]} comes after it; write {later[0]} first"
        for one in names:
            if inner := [other for other in names if other.startswith(f"{one}.")]:
                yield f"tune.space: {one} is a section of which {inner[0]} is a part; leave one of them out"
        if self.algorithm == "grid":
            free = [name for name, entry in self.space.items() if entry.listed is None]
            if free:
                yield f"tune.space {free[0]}: a grid needs values, or a range with a step"
        elif self.budget.trials is None:
            yield f"tune.algorithm = {self.algorithm} has no end of its own: give tune.budget.trials"
        if self.scheduler == "asha" and self.metrics.get("accuracy") != "max":
            yield "tune.scheduler = asha stops trials by their accuracy: give tune.metrics {accuracy: max, ...}"
        if self.algorithm == "optuna" and set(self.metrics) == {"latency"}:
            yield (
                "tune.metrics: latency is measured when all trials have ended, so optuna learns nothing from it; add "
                "another metric"
            )
