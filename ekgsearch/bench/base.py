"""The frame of every benchmark: its settings, interleaved pairs, one table on screen and rows in parquet.

A benchmark is a module `ekgsearch/bench/NAME.py` with a docstring that says what it compares and why that is fair, a
class `Settings(BenchSettings)`, which says what it is in small, and a function
`run(settings) -> Iterable[Measurement]`; `jobs/bench_NAME.yaml` names it. A long one yields its measurements as it
makes them: each is stored at once, so that a killed benchmark loses one.
"""

import importlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Self

import torch
from pydantic import Field

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import Mark, Section, Text
from ekgsearch.jobfile import Fields, load_fields, load_job
from ekgsearch.methods.ekg.section import EkgSection
from ekgsearch.pipeline.smoke import MOST_PIXELS, SUFFIX, Smoke, smoke_of
from ekgsearch.rows.column import column
from ekgsearch.runtime.environment import provenance
from ekgsearch.storage.files import write_error
from ekgsearch.storage.tables import append_rows
from ekgsearch.strict_yaml import shown

log = logging.getLogger(__name__)


class BenchSettings(Section):
    """Fields of every benchmark."""

    bench: str = Field(description="name of the benchmark")
    output: Annotated[Text, Mark.PATH] = Field(
        "../results/bench.parquet", description="parquet file that the rows are added to"
    )

    @property
    def lacking(self) -> str:
        """In words, what this machine lacks for the benchmark; empty where it lacks nothing."""
        return ""

    def smoke(self) -> Smoke[Self]:
        """The same in small: one pair of everything, rows in a file of their own.

        Raises:
            EkgError: what the benchmark names is there and damaged.
        """
        changes, notes = self.in_small()
        output = Path(self.output)
        changes = {**changes, "output": str(output.with_name(output.stem + SUFFIX + output.suffix))}
        return Smoke(type(self).model_validate(self.model_dump() | changes), notes)

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Fields of the smoke form that differ, and notes on what is missing."""
        return {}, ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number of a benchmark.

    Attributes:
        case: what was measured, such as `sliced` or `dali, two views`.
        quantity: what the number is, such as `process time` or `MACs against naive`.
        unit: its unit; `x` for a ratio.
        value: the number; the median where it was measured repeatedly.
        low, high: smallest and largest of the repetitions; both equal to the value for a count.
        repeats: repetitions.
    """

    case: str
    quantity: str
    unit: str
    value: float
    low: float
    high: float
    repeats: int = 1

    @classmethod
    def count(cls, case: str, quantity: str, unit: str, value: float) -> "Measurement":
        """A number without a spread."""
        return cls(case=case, quantity=quantity, unit=unit, value=value, low=value, high=value)

    @classmethod
    def of(cls, case: str, quantity: str, unit: str, values: Sequence[float]) -> "Measurement":
        """Median, smallest and largest of repeated measurements."""
        spread = {"value": statistics.median(values), "low": min(values), "high": max(values)}
        return cls(case=case, quantity=quantity, unit=unit, repeats=len(values), **spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """A measurement with the machine and the software it was made on."""

    bench: str = column("name of the benchmark")
    case: str = column("what was measured")
    quantity: str = column("what the number is")
    unit: str = column("its unit; x for a ratio")
    value: float = column("the number; the median where it was measured repeatedly")
    low: float = column("smallest of the repetitions")
    high: float = column("largest of the repetitions")
    repeats: int = column("repetitions")
    settings: str = column("settings of the benchmark, JSON")
    cpu: str = column("processor")
    cores: int = column("processor cores that could be used")
    gpus: str = column("GPUs, JSON list")
    python: str = column("version of Python")
    packages: str = column("versions of packages, JSON")
    commit: str = column("git commit of ekgsearch; empty outside a checkout")


def abab(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[list[float], list[float]]:
    """Run two functions in turn, so that whatever else the machine does falls on both.

    Args:
        first: one side of the comparison; called once beforehand, unmeasured.
        second: the other side; likewise.
        pairs: pairs measured.
        clock: seconds so far; by default the processor time of this process.

    Returns:
        Seconds of each call of the first and of the second function, pair by pair.
    """
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for function, seconds in zip((first, second), times, strict=True):
            start = clock()
            function()
            seconds.append(clock() - start)
    return times


def ratio(case: str, quantity: str, numerator: Sequence[float], denominator: Sequence[float]) -> Measurement:
    """Median of the pairwise ratios, with the smallest and the largest."""
    return Measurement.of(case, quantity, "x", [a / b for a, b in zip(numerator, denominator, strict=True)])


def gpu_lacking(device: str) -> str:
    """What `BenchSettings.lacking` says of a kind of device."""
    is_lacking = device == "cuda" and not torch.cuda.is_available()
    return "it needs a GPU, and torch finds no CUDA device on this machine" if is_lacking else ""


def pixels_in_small(size: int) -> int:
    """Side of the images of a benchmark in small."""
    return min(size, MOST_PIXELS)


def job_in_small(path: str, overrides: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The field `overrides` of a benchmark that turns its job into the job's smoke form, and the notes of that.

    Args:
        path: the job that the benchmark names.
        overrides: fields of it that the benchmark replaces.
    """
    smoke = smoke_of(load_job(Path(path), overrides))
    fields = smoke.checked.model_dump(mode="json")
    return {"overrides": tuple(f"{name}={json.dumps(value)}" for name, value in fields.items())}, smoke.notes


def run_bench(path: Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> tuple[str, list[Measurement], Path]:
    """Run the benchmark that a YAML file describes; log and store each measurement as it comes.

    Args:
        path: the YAML file.
        overrides: ``field=value`` settings that replace fields.
        smoke: run its smoke form, whose rows replace those of an earlier one.

    Returns:
        What the benchmark compares, its measurements, and the parquet file they were added to.

    Raises:
        JobError: the file, the name or a field is wrong.
        StorageError: the parquet file cannot be written, or holds something else.
    """
    module, settings = load_bench(path, overrides)
    if smoke:
        small = settings.smoke()
        small.tell()
        settings = small.checked
        Path(settings.output).unlink(missing_ok=True)
    output = Path(settings.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(output, error, 0) from error
    append_rows(output, [], BenchRow)  # a file that takes no rows is met before anything is measured
    machine = provenance()
    measurements: list[Measurement] = []
    for measurement in module.run(settings):
        append_rows(output, [_row(settings, measurement, machine)], BenchRow)
        measurements.append(measurement)
        log.info("%s: %s: %.5g %s", measurement.case, measurement.quantity, measurement.value, measurement.unit)
    return str(module.__doc__).strip(), measurements, output


def load_bench(path: Path, overrides: Sequence[str] = ()) -> tuple[ModuleType, BenchSettings]:
    """Check the YAML file of a benchmark; returns its module and its settings. Arguments and errors as `run_bench`."""
    return check_bench(load_fields(path, overrides))


def check_bench(fields: Fields) -> tuple[ModuleType, BenchSettings]:
    """Check the fields of a benchmark; see `load_bench`."""
    name = str(fields.values.get("bench"))
    known = sorted(
        file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in ("__init__", "base", "ceilings")
    )
    if name not in known:
        raise JobError(f"{fields.place(('bench',))}: bench: {shown(name)}: expected one of {', '.join(known)}")
    module = importlib.import_module(f"ekgsearch.bench.{name}")
    return module, fields.check(module.Settings)


def table(measurements: Sequence[Measurement]) -> str:
    """Lay out measurements as text, one per line."""
    lines = [("case", "quantity", "value", "lowest", "highest", "n", "unit")]
    lines += [
        (m.case, m.quantity, f"{m.value:.5g}", f"{m.low:.5g}", f"{m.high:.5g}", str(m.repeats), m.unit)
        for m in measurements
    ]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if index in (0, 1, 6) else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _row(settings: BenchSettings, measurement: Measurement, machine: Mapping[str, Any]) -> BenchRow:
    return BenchRow(
        bench=settings.bench,
        **{name: getattr(measurement, name) for name in Measurement.__slots__},
        settings=settings.model_dump_json(exclude={"bench", "output"}),
        cpu=machine["cpu"],
        cores=machine["cores"],
        gpus=json.dumps(machine["gpus"]),
        python=machine["python"],
        packages=json.dumps(machine["packages"]),
        commit=machine["commit"] or "",
    )


def ekg_section(job: Job) -> EkgSection:
    """The search section of a job whose search by EKG is measured.

    Raises:
        JobError: the job searches by another method.
    """
    if not isinstance(job.search, EkgSection):
        raise JobError(
            f"job: search.method = {job.search.method}, but this benchmark measures the search of ekg; name another job"
        )
    return job.search
