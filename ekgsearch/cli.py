"""The command line: run a job, look at its channel groups, check it, report and export results."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from pydantic import BaseModel

from ekgsearch.runtime.plain import plain_line, plain_text
from ekgsearch.version import __version__

if TYPE_CHECKING:
    from ekgsearch.experiment import Job

    Kind = TypeVar("Kind", bound=Job)

EXIT_BREAKS = 1

_job_argument = click.argument("job", type=click.Path(path_type=Path))
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Replace a field, e.g. --set search.reduction=0.45"
)
_resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Continue although the machine or a version differs, or a field on which no phase depends that has begun.",
)
_smoke_option = click.option(
    "--smoke",
    is_flag=True,
    help="See in a minute whether it runs: in small, in this process. The output has another name, with .smoke.",
)
_verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show details.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ekgsearch")
def cli() -> None:
    """Shrink convolutional networks: search channel groups, distil, fine-tune, report.

    \b
    Examples:
      ekgsearch validate jobs/quickstart.yaml
      ekgsearch groups jobs/quickstart.yaml
      ekgsearch run jobs/quickstart.yaml --smoke
      ekgsearch run jobs/quickstart.yaml
      ekgsearch run jobs/quickstart.yaml --set search.reduction=0.6 --set output=results/at60
      ekgsearch report results/quickstart results/at60 --out comparison.html
      ekgsearch export results/* --out summaries.parquet
    """


@cli.command()
@_job_argument
@_set_option
@click.option("--address", default=None, help="Ray cluster to use, e.g. auto or 10.0.0.1:6379. [$RAY_ADDRESS]")
@_resume_option
@click.option(
    "--audit",
    "num_audited",
    type=click.IntRange(min=1),
    metavar="N",
    help="At the end, or on a finished run, decide N random iterations again by the exact tier and compare.",
)
@click.option(
    "--verify-phases",
    is_flag=True,
    help="Compute the phases that the store in phases.uri has again, and stop where the result is another one.",
)
@_smoke_option
@_verbose_option
def run(
    job: Path,
    overrides: tuple[str, ...],
    address: str | None,
    resume: bool,
    num_audited: int | None,
    verify_phases: bool,
    smoke: bool,
    verbose: bool,
) -> None:
    """Run JOB to its end; the same command continues a run that was stopped.

    With --smoke all of its phases run in small and from the beginning: images of at most 64 pixels, four of each of ten
    classes, one iteration with three candidates, two steps of every training. Images that are missing are replaced by
    generated ones, and nothing is downloaded.

    \b
    Examples:
      ekgsearch run jobs/quickstart.yaml
      ekgsearch run jobs/quickstart.yaml --set seed=2 --set output=results/seed2
      ekgsearch run jobs/quickstart.yaml --set search.precision=bf16 --audit 10
      ekgsearch run jobs/quickstart.yaml --set phases.uri=results/phases --set output=results/again
      ekgsearch run jobs/ekg_resnet56_cifar10.yaml --address auto
      ekgsearch run jobs/ekg_resnet50_imagenet.yaml --smoke --set finetune.objective=byol
    """
    from ekgsearch.jobfile import load_job
    from ekgsearch.orchestration.launch import launch
    from ekgsearch.pipeline.run import run_job
    from ekgsearch.report.html import write_report
    from ekgsearch.report.tables import load_run
    from ekgsearch.report.terminal import audit_text, summary_text
    from ekgsearch.signals import ended_by_sigterm

    settings = [*overrides, *([f"cluster.address={json.dumps(address)}"] if address else [])]
    asked_run = partial(run_job, num_audited=num_audited or 0, verify_phases=verify_phases)
    checked = load_job(job, settings)
    with ended_by_sigterm():
        if smoke:
            _refuse_with_smoke(resume=resume, address=address, verify_phases=verify_phases)
            run_dir = _launch_smoke(checked, asked_run, verbose)[1]
        else:
            run_dir = launch(checked, continue_anyway=resume, verbose=verbose, run=asked_run)
    report = write_report([run_dir])
    tables = load_run(run_dir)
    click.echo(plain_text(summary_text(tables)))
    if num_audited:
        click.echo(plain_text(f"\n{audit_text(tables)}\n"))
    click.echo(plain_line(f"report: {report}"))


@cli.command()
@_job_argument
@_set_option
@_verbose_option
def groups(job: Path, overrides: tuple[str, ...], verbose: bool) -> None:
    """Print the channel groups of JOB's network: what can be cut, what is frozen and why, and how far it can go.

    \b
    Example:
      ekgsearch groups jobs/ekg_resnet56_cifar10.yaml
    """
    from ekgsearch.jobfile import load_job
    from ekgsearch.pipeline.inspect import group_table
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    click.echo(plain_text(group_table(load_job(job, overrides))))


@cli.command()
@_job_argument
@_set_option
@click.option("--show", is_flag=True, help="Print the job with every default written out.")
@click.option("--paths", is_flag=True, help="Look also whether the files and folders that it names are there.")
def validate(job: Path, overrides: tuple[str, ...], show: bool, paths: bool) -> None:
    """Check the fields of JOB, of a study or of a benchmark without opening what it names; every mistake is one line.

    \b
    Examples:
      ekgsearch validate jobs/quickstart.yaml
      ekgsearch validate jobs/ekg_resnet56_cifar10_cpu.yaml --paths
      ekgsearch validate jobs/quickstart.yaml --show
      ekgsearch validate jobs/bench_search.yaml
    """
    from ekgsearch.bench.base import check_bench
    from ekgsearch.errors import JobError
    from ekgsearch.experiment import Job
    from ekgsearch.jobfile import fields_text, load_fields
    from ekgsearch.named_files import missing_files
    from ekgsearch.pipeline.study import StudyJob

    fields = load_fields(job, overrides)
    command = next((name for name in ("bench", "study") if name in fields.values), "run")
    match command:
        case "bench":
            checked: BaseModel = check_bench(fields)[1]
        case "study":
            checked = fields.check(StudyJob)
        case _:
            checked = fields.check(Job)
    if paths and (missing := missing_files(checked)):
        raise JobError(*(f"{fields.place(name.split('.'))}: {words}" for name, words in missing))
    click.echo(fields_text(checked) if show else f"{job}: valid; start it with: ekgsearch {command} {job}")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="File to write; default: in the first run.")
@_verbose_option
def report(runs: tuple[Path, ...], out: Path | None, verbose: bool) -> None:
    """Write one self-contained HTML report of RUNS, and the same plots as PNG files.

    \b
    Examples:
      ekgsearch report results/quickstart
      ekgsearch report results/seed1 results/seed2 --out comparison.html
    """
    from ekgsearch.report.html import write_report
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    click.echo(plain_line(str(write_report(list(runs), out))))


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write: .parquet or .csv.")
@click.option("--table", default="summary", show_default=True, help="Which table of the runs to join.")
@_verbose_option
def export(runs: tuple[Path, ...], out: Path, table: str, verbose: bool) -> None:
    """Join a table of several RUNS into one file; the default is one summary row per run.

    Runs without rows in this table, and folders that are no run, are left out and named with the reason.

    \b
    Examples:
      ekgsearch export results/quickstart --out summary.parquet
      ekgsearch export results/* --table candidates --out candidates.csv
    """
    from ekgsearch.report.export import export as export_tables
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    num_rows = export_tables(runs, out, table=table)
    click.echo(plain_line(f"{out}: {num_rows} {'row' if num_rows == 1 else 'rows'}"))


@cli.command()
@click.argument("benchmark", type=click.Path(path_type=Path))
@_set_option
@_smoke_option
@_verbose_option
def bench(benchmark: Path, overrides: tuple[str, ...], smoke: bool, verbose: bool) -> None:
    """Run the BENCHMARK that a YAML file describes: add rows to a parquet file as they come, print one table.

    With --smoke its numbers mean nothing: one pair of everything, small. Where the machine lacks what it is about, such
    as a GPU, that is said, and the exit status is 0.

    \b
    Examples:
      ekgsearch bench jobs/bench_search.yaml
      ekgsearch bench jobs/bench_search.yaml --set pairs=9 --set output=results/bench.parquet
      ekgsearch bench jobs/bench_search.yaml --smoke
    """
    from ekgsearch.bench.base import load_bench, run_bench, table
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    if smoke and (lacking := load_bench(benchmark, overrides)[1].lacking):
        click.echo(f"{benchmark}: skipped, since {lacking}")
        return
    title, measurements, output = run_bench(benchmark, overrides, smoke=smoke)
    click.echo(f"{title}\n\n{table(measurements)}\n\nrows added to {output}")


@cli.command()
@_job_argument
@_set_option
@_resume_option
@_smoke_option
@_verbose_option
def study(job: Path, overrides: tuple[str, ...], resume: bool, smoke: bool, verbose: bool) -> None:
    """Run the study of random sub-networks that JOB describes; the same command continues it.

    With --smoke it has three sub-networks, and is as small as a run is with it.

    \b
    Examples:
      ekgsearch study jobs/study_landscape_digits.yaml
      ekgsearch study jobs/study_landscape_resnet56.yaml --set study.condition=relative
      ekgsearch study jobs/study_landscape_resnet56.yaml --smoke
    """
    from ekgsearch.jobfile import load_model
    from ekgsearch.orchestration.launch import launch
    from ekgsearch.pipeline.study import StudyJob, run_study
    from ekgsearch.report.study import write_study
    from ekgsearch.signals import ended_by_sigterm

    checked = load_model(job, StudyJob, overrides)
    with ended_by_sigterm():
        if smoke:
            _refuse_with_smoke(resume=resume)
            checked, run_dir = _launch_smoke(checked, run_study, verbose)
        else:
            run_dir = launch(checked, continue_anyway=resume, verbose=verbose, run=run_study)
    figure, text = write_study(run_dir / "tables" / "study.parquet", checked.study.condition)
    click.echo(f"{text}\n{plain_line(f'figure: {figure}')}")


@cli.command()
@click.option("--oracle", type=click.Path(path_type=Path), required=True, help="Folder of recorded decisions.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights at the start. [the folder's .safetensors]")
@click.option("--data", type=click.Path(path_type=Path), envvar="EKGSEARCH_DATA", help="Images. [$EKGSEARCH_DATA]")
@click.option("--reduction", type=click.FloatRange(0, 1, True, True), default=0.45, show_default=True)
@click.option("--iteration", "iterations", type=int, multiple=True, help="Only these; may be repeated. [all]")
@_verbose_option
def replay(
    oracle: Path,
    weights: Path | None,
    data: Path | None,
    reduction: float,
    iterations: tuple[int, ...],
    verbose: bool,
) -> None:
    """Repeat the recorded decisions of the program that was published with the paper; exit status 1 where one breaks.

    Every iteration starts from its recorded state; a line tells the largest deviations from the record. Stretches of
    consecutive iterations whose recorded margins are large enough to decide are then run freely.

    \b
    Examples:
      ekgsearch replay --oracle $EKGSEARCH_DATA/oracle
      ekgsearch replay --oracle recorded --weights start.safetensors --iteration 9 --iteration 10
    """
    from ekgsearch.pipeline.replaying import free_run_text, iteration_text, open_replay
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    if data is None:
        raise click.UsageError("give the folder of the images: --data FOLDER, or set EKGSEARCH_DATA")
    opened, chosen, broken = open_replay(oracle, weights, data, reduction), sorted(set(iterations)) or None, 0
    helped = []
    if opened.oracle.incomplete:
        click.echo(f"{len(opened.oracle.incomplete)} recorded iterations have no arrays and are not compared")
    for report in opened.run(chosen):
        click.echo(iteration_text(report))
        broken += bool(report.breaks)
        helped += [report.iteration] if report.draws or report.near_ties else []
    for found in opened.free_runs(chosen):
        click.echo(free_run_text(found))
        broken += found.broke_at is not None
    notes = f"; with rounding draws or near ties in the recorded order: iterations {helped}" if helped else ""
    click.echo("BREAKS" if broken else f"agrees{notes}")
    sys.exit(EXIT_BREAKS if broken else 0)


@cli.command()
@click.option("--tables", is_flag=True, help="Describe the columns of the result tables instead.")
def schema(tables: bool) -> None:
    """Print the JSON schema of a job, or the documented columns of the result tables.

    \b
    Examples:
      ekgsearch schema > job.schema.json
      ekgsearch schema --tables
    """
    if tables:
        from ekgsearch.rows import table_columns

        click.echo(json.dumps(table_columns(), indent=2))
    else:
        from ekgsearch.experiment import job_schema

        click.echo(json.dumps(job_schema(), indent=2))


def _refuse_with_smoke(**options: object) -> None:
    """Refuse the options that mean nothing where a run is small, begins at the beginning and stays in this process."""
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise click.UsageError(f"--smoke begins at the beginning, in this process; leave {' and '.join(given)} out")


def _launch_smoke(job: "Kind", run: Callable[..., object], verbose: bool) -> "tuple[Kind, Path]":
    """Run the smoke form of a job or a study; returns it, and its run directory."""
    from ekgsearch.orchestration.launch import launch
    from ekgsearch.pipeline.smoke import emptied, smoke_of
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    smoke = smoke_of(job)

    def run_and_tell(*arguments: object, **options: object) -> None:
        smoke.tell()
        run(*arguments, **options)

    with emptied(smoke.checked):
        run_dir = launch(smoke.checked, continue_anyway=False, verbose=verbose, run=run_and_tell, in_process=True)
    return smoke.checked, run_dir
