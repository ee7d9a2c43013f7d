"""The command line."""

import click

from ekgsearch.cli.jobs import schema, validate
from ekgsearch.cli.networks import convert, groups, latency
from ekgsearch.cli.results import export, report
from ekgsearch.cli.runs import bench, replay, run, study
from ekgsearch.cli.sweeps import tune
from ekgsearch.version import __version__


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
      ekgsearch convert results/quickstart --to onnx
      ekgsearch latency results/quickstart
    """


for command in (run, tune, groups, validate, report, export, convert, latency, bench, study, replay, schema):
    cli.add_command(command)
