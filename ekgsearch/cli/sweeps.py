"""Command that runs sweeps: tune."""

import json
from pathlib import Path

import click

from ekgsearch.cli.options import job_argument, set_option, smoke_option, verbose_option
from ekgsearch.cli.smoke import launch_smoke, refuse_with_smoke
from ekgsearch.runtime.plain import plain_line, plain_text


@click.command()
@job_argument
@set_option
@click.option("--address", default=None, help="Ray cluster to use, e.g. auto or 10.0.0.1:6379. [$RAY_ADDRESS]")
@click.option("--dry-run", is_flag=True, help="Print the trials, what they share and what they cost at most; no more.")
@smoke_option
@verbose_option
def tune(job: Path, overrides: tuple[str, ...], address: str | None, dry_run: bool, smoke: bool, verbose: bool) -> None:
    """Run the sweep that JOB describes, many runs that differ in some fields; the same command goes on with it.

    Trials are runs under OUTPUT/trials that share phases. The tables of the sweep are in OUTPUT/tables, its report is
    OUTPUT/report.html, and OUTPUT/best holds a job for each trial of the Pareto front, ready to run.

    With --smoke one trial of each kind, by the fields that apply to it, runs in small, one after the other.

    \b
    Examples:
      ekgsearch tune jobs/tune_digits.yaml --dry-run
      ekgsearch tune jobs/tune_digits.yaml
      ekgsearch tune jobs/tune_digits.yaml --set tune.budget.wall_minutes=5
      ekgsearch tune jobs/tune_digits.yaml --set tune.algorithm=optuna --set tune.budget.trials=20
      ekgsearch tune jobs/tune_resnet56_cifar10.yaml --address auto
      ekgsearch tune jobs/tune_resnet50_imagenet.yaml --smoke
    """
    from ekgsearch.orchestration.sweeping import run_sweep
    from ekgsearch.pipeline.run import run_job
    from ekgsearch.report.sweep import is_sweep, sweep_text, write_sweep_report
    from ekgsearch.signals import ended_by_sigterm
    from ekgsearch.sweep.job import load_sweep
    from ekgsearch.sweep.prospect import prospect_text

    settings = [*overrides, *([f"cluster.address={json.dumps(address)}"] if address else [])]
    sweep = load_sweep(job, settings)
    trials = sweep.known_trials()
    if trials is None:
        sweep.check_corners()
    click.echo(plain_text(prospect_text(sweep, trials)))
    if dry_run:
        return
    if smoke:
        refuse_with_smoke(address=address)
        places = [launch_smoke(trial.job, run_job, verbose)[1] for trial in sweep.one_of_each_kind()]
        click.echo(plain_line(f"{len(places)} kinds of trials run: {', '.join(map(str, places))}"))
        return
    try:
        with ended_by_sigterm():
            run_sweep(sweep, trials, verbose=verbose)
    finally:
        if is_sweep(sweep.folder):  # also of one that has not ended
            report = write_sweep_report(sweep.folder)
            click.echo(plain_text(sweep_text(sweep.folder)))
            click.echo(plain_line(f"report: {report}"))
