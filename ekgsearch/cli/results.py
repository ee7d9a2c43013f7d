"""Commands about the results of runs: report and export."""

from pathlib import Path

import click

from ekgsearch.cli.options import verbose_option
from ekgsearch.runtime.plain import plain_line


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="File to write; default: in the first run.")
@verbose_option
def report(runs: tuple[Path, ...], out: Path | None, verbose: bool) -> None:
    """Write one self-contained HTML report of RUNS, or of one sweep, and the same plots as PNG files.

    \b
    Examples:
      ekgsearch report results/quickstart
      ekgsearch report results/seed1 results/seed2 --out comparison.html
      ekgsearch report results/tune_digits
    """
    from ekgsearch.report.html import write_report
    from ekgsearch.report.sweep import is_sweep, write_sweep_report
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    sweeps = [run for run in runs if is_sweep(run)]
    if sweeps and len(runs) > 1:
        raise click.UsageError(f"{sweeps[0]} is a sweep: report on it alone, or name some of its trials/* to compare")
    written = write_sweep_report(runs[0], out) if sweeps else write_report(list(runs), out)
    click.echo(plain_line(str(written)))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, help="File to write, .parquet or .csv; with --partition-by a folder or bucket.")
@click.option("--table", default="summary", show_default=True, help="Which table of the runs to join.")
@click.option(
    "--partition-by",
    metavar="COLUMN,...",
    default="",
    help="Write a data set of many files: a folder for each value of these columns, such as method,dataset.",
)
@click.option("--published", is_flag=True, help="Add the results of the papers, in the same columns.")
@click.option("--all", "unfinished", is_flag=True, help="Add runs that have not finished, with their state.")
@verbose_option
def export(
    runs: tuple[Path, ...], out: str, table: str, partition_by: str, published: bool, unfinished: bool, verbose: bool
) -> None:
    """Join a table of several RUNS into one file; the default is one summary row per run.

    A sweep stands for its trials, a parquet file for an earlier export. Runs without rows in this table, and folders
    that are no run, are left out and named with the reason.

    \b
    Examples:
      ekgsearch export results/quickstart --out summary.parquet
      ekgsearch export results/* --table candidates --out candidates.csv
      ekgsearch export results/tune_digits --all --published --out trials.parquet
      ekgsearch export results/* --partition-by method,dataset --out s3://bucket/summaries
    """
    from ekgsearch.report.export import export as export_tables
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    num_rows = export_tables(
        runs,
        out,
        table=table,
        partition_by=[name.strip() for name in partition_by.split(",") if name.strip()],
        published=published,
        unfinished=unfinished,
    )
    click.echo(plain_line(f"{out}: {num_rows} {'row' if num_rows == 1 else 'rows'}"))
