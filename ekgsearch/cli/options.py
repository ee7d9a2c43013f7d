"""Arguments and options that several commands have."""

from pathlib import Path

import click

job_argument = click.argument("job", type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Replace a field, e.g. --set search.reduction=0.45"
)
resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Continue although the machine or a version differs, or a field on which no phase depends that has begun.",
)
smoke_option = click.option(
    "--smoke",
    is_flag=True,
    help="See in a minute whether it runs: in small, in this process. The output has another name, with .smoke.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show details.")
factory_option = click.option(
    "--factory",
    metavar="TARGET",
    help="What makes the unpruned network, for one of your own: package.module:callable or path/file.py:callable.",
)
trust_option = click.option(
    "--trust-factory", is_flag=True, help="Let the code run that the file itself names; only for files of your own."
)
