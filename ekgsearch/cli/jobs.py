"""Commands about job files: validate and schema."""

import json
from pathlib import Path

import click
from pydantic import BaseModel

from ekgsearch.cli.options import job_argument, set_option


@click.command()
@job_argument
@set_option
@click.option("--show", is_flag=True, help="Print the job with every default written out.")
@click.option("--paths", is_flag=True, help="Look also whether the files and folders that it names are there.")
def validate(job: Path, overrides: tuple[str, ...], show: bool, paths: bool) -> None:
    """Check the fields of JOB, a study, a sweep or a benchmark without opening what it names; every mistake is a line.

    \b
    Examples:
      ekgsearch validate jobs/quickstart.yaml
      ekgsearch validate jobs/ekg_resnet56_cifar10_cpu.yaml --paths
      ekgsearch validate jobs/quickstart.yaml --show
      ekgsearch validate jobs/bench_search.yaml
      ekgsearch validate jobs/tune_digits.yaml
    """
    from ekgsearch.bench.base import check_bench
    from ekgsearch.errors import JobError
    from ekgsearch.experiment import Job
    from ekgsearch.jobfile import fields_text, load_fields
    from ekgsearch.named_files import missing_files
    from ekgsearch.pipeline.study import StudyJob
    from ekgsearch.sweep.job import sweep_of

    fields = load_fields(job, overrides)
    command = next((name for name in ("bench", "study", "tune") if name in fields.values), "run")
    text = None
    match command:
        case "bench":
            checked: BaseModel = check_bench(fields)[1]
        case "study":
            checked = fields.check(StudyJob)
        case "tune":
            sweep = sweep_of(fields)
            if sweep.known_trials() is None:
                sweep.check_corners()
            checked, text = sweep.any_trial().job, sweep.text()
        case _:
            checked = fields.check(Job)
    if paths and (missing := missing_files(checked)):
        raise JobError(*(f"{fields.place(name.split('.'))}: {words}" for name, words in missing))
    click.echo((text or fields_text(checked)) if show else f"{job}: valid; start it with: ekgsearch {command} {job}")


@click.command()
@click.option("--tables", is_flag=True, help="Describe the columns of the result tables instead.")
def schema(tables: bool) -> None:
    """Print the JSON schema of a job, or the documented columns of the result tables.

    \b
    Examples:
      ekgsearch schema > job.schema.json
      ekgsearch schema --tables
    """
    if tables:
        from ekgsearch.rows.tables import table_columns
        from ekgsearch.sweep.rows import TABLES

        click.echo(json.dumps({**table_columns(), **table_columns(TABLES)}, indent=2))
    else:
        from ekgsearch.experiment import job_schema

        click.echo(json.dumps(job_schema(), indent=2))
