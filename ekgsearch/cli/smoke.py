"""The smoke form of a job, as several commands run it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from ekgsearch.experiment import Job

    Kind = TypeVar("Kind", bound=Job)


def refuse_with_smoke(**options: object) -> None:
    """Refuse the options that mean nothing where a run is small, begins at the beginning and stays in this process."""
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value]:
        raise click.UsageError(f"--smoke begins at the beginning, in this process; leave {' and '.join(given)} out")


def launch_smoke(job: "Kind", run: Callable[..., object], verbose: bool) -> "tuple[Kind, Path]":
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
