"""Commands that compute: run, study, bench and replay."""

import json
import sys
from functools import partial
from pathlib import Path

import click

from ekgsearch.cli.options import job_argument, resume_option, set_option, smoke_option, verbose_option
from ekgsearch.cli.smoke import launch_smoke, refuse_with_smoke
from ekgsearch.runtime.plain import plain_line, plain_text

EXIT_BREAKS = 1


@click.command()
@job_argument
@set_option
@click.option("--address", default=None, help="Ray cluster to use, e.g. auto or 10.0.0.1:6379. [$RAY_ADDRESS]")
@resume_option
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
@smoke_option
@verbose_option
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
            refuse_with_smoke(resume=resume, address=address, verify_phases=verify_phases)
            run_dir = launch_smoke(checked, asked_run, verbose)[1]
        else:
            run_dir = launch(checked, continue_anyway=resume, verbose=verbose, run=asked_run)
    report = write_report([run_dir])
    tables = load_run(run_dir)
    click.echo(plain_text(summary_text(tables)))
    if num_audited:
        click.echo(plain_text(f"\n{audit_text(tables)}\n"))
    click.echo(plain_line(f"report: {report}"))


@click.command()
@job_argument
@set_option
@resume_option
@smoke_option
@verbose_option
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
            refuse_with_smoke(resume=resume)
            checked, run_dir = launch_smoke(checked, run_study, verbose)
        else:
            run_dir = launch(checked, continue_anyway=resume, verbose=verbose, run=run_study)
    figure, text = write_study(run_dir / "tables" / "study.parquet", checked.study.condition)
    click.echo(f"{text}\n{plain_line(f'figure: {figure}')}")


@click.command()
@click.argument("benchmark", type=click.Path(path_type=Path))
@set_option
@smoke_option
@verbose_option
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


@click.command()
@click.option("--oracle", type=click.Path(path_type=Path), required=True, help="Folder of recorded decisions.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights at the start. [the folder's .safetensors]")
@click.option("--data", type=click.Path(path_type=Path), envvar="EKGSEARCH_DATA", help="Images. [$EKGSEARCH_DATA]")
@click.option("--reduction", type=click.FloatRange(0, 1, True, True), default=0.45, show_default=True)
@click.option("--iteration", "iterations", type=int, multiple=True, help="Only these; may be repeated. [all]")
@verbose_option
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
