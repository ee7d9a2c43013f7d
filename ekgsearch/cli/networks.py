"""Commands about networks: their channel groups, other formats, their latency."""

import json
from pathlib import Path

import click

from ekgsearch.cli.options import factory_option, set_option, trust_option, verbose_option
from ekgsearch.runtime.plain import plain_line, plain_text


@click.command()
@click.argument("job", type=click.Path(path_type=Path), required=False)
@set_option
@click.option("--input", "shape", metavar="CxHxW", help="Shape of one image, e.g. 3x224x224. [that of the images]")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes. [that of the images]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--list", "listed", is_flag=True, help="List the networks that net.name can be; needs no JOB.")
@verbose_option
def groups(
    job: Path | None,
    overrides: tuple[str, ...],
    shape: str | None,
    classes: int | None,
    as_json: bool,
    listed: bool,
    verbose: bool,
) -> None:
    """Print the channel groups of JOB's network: what can be cut, what is frozen and why, and how far it can go.

    No picture is decoded. Without the images, --input and --classes say what they would tell.

    \b
    Examples:
      ekgsearch groups jobs/ekg_resnet56_cifar10.yaml
      ekgsearch groups jobs/ekg_resnet50_imagenet.yaml --input 3x224x224 --classes 1000
      ekgsearch groups jobs/quickstart.yaml --set net.name=torchvision/resnet18 --json
      ekgsearch groups --list
    """
    from ekgsearch.jobfile import load_job
    from ekgsearch.pipeline.inspect import inspect
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    if listed:
        click.echo(_network_list(as_json))
        return
    if job is None:
        raise click.UsageError("give a JOB, or --list")
    found = inspect(load_job(job, overrides), _shape(shape), classes)
    click.echo(json.dumps(found.values(), indent=2) if as_json else plain_text(found.text()))


def _network_list(as_json: bool) -> str:
    """Names of all networks by where they come from."""
    from ekgsearch.sections.names import all_networks

    names = all_networks()
    if as_json:
        return json.dumps(names, indent=2)
    lines = [
        f"{library} ({len(found)}): {', '.join(found)}"
        if found
        else f"{library}: not installed (pip install {library})"
        for library, found in names.items()
    ]
    return "\n\n".join([*lines, "Your own: net.factory: package.module:callable, or path/file.py:callable"])


def _shape(text: str | None) -> tuple[int, int, int] | None:
    """Read CxHxW."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise click.UsageError(f"--input {text}: expected CxHxW, such as 3x224x224")
    channels, height, width = map(int, parts)
    return channels, height, width


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option("--to", "to", type=click.Choice(["onnx", "pt2", "torchscript"]), required=True, help="Format.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write. [next to the network's]")
@click.option("--fold-norms", is_flag=True, help="Make batch norms part of the convolutions before them.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder of pictures to compare on. [the run's test images]"
)
@factory_option
@trust_option
@verbose_option
def convert(
    network: Path,
    to: str,
    out: Path | None,
    fold_norms: bool,
    images: Path | None,
    factory: str | None,
    trust_factory: bool,
    verbose: bool,
) -> None:
    """Write the network of a run, or of a file, in the format of another program, and compare it with the original.

    It takes batches of any size. A JSON file next to it holds input size, normalisation, class names, widths, MACs and
    accuracy.

    \b
    Examples:
      ekgsearch convert results/quickstart --to onnx
      ekgsearch convert results/quickstart/final.safetensors --to pt2 --out small.pt2 --fold-norms
      ekgsearch convert small.safetensors --to torchscript --factory nets/mine.py:MyNet --images pictures/val
    """
    from ekgsearch.pipeline.converting import convert_network
    from ekgsearch.runtime.progress import configure_logging

    configure_logging(None, verbose)
    made = convert_network(
        network,
        to,  # type: ignore[arg-type]  # click has checked it
        out,
        fold=fold_norms,
        images=images,
        factory=factory,
        trust=trust_factory,
    )
    of = "random numbers, since no images were at hand" if made.is_noise else "real images"
    folded = f"; {made.folded} batch norms folded" if fold_norms else ""
    click.echo(
        plain_line(
            f"{made.path}: logits differ by at most {made.difference:.2g} of {made.largest:.3g} on {made.num_images} "
            f"{of}, the same class for {made.agree}{folded}; described in {made.about}"
        )
    )


@click.command()
@click.argument("networks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch", default="1,64", show_default=True, help="Images of one pass, several by commas.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["eager", "compile", "onnx"]),
    default=("eager",),
    show_default=True,
    help="What runs the networks; may be repeated.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where.")
@click.option("--threads", type=click.IntRange(min=1), help="torch threads. [one per core]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Parquet file that rows are added to. [tables/latencies of the run]"
)
@factory_option
@trust_option
@verbose_option
def latency(
    networks: tuple[Path, ...],
    batch: str,
    backends: tuple[str, ...],
    device: str,
    threads: int | None,
    out: Path | None,
    factory: str | None,
    trust_factory: bool,
    verbose: bool,
) -> None:
    """Measure how long the networks of runs, or of files, take on this machine, next to those that they were cut from.

    The two take turns, so that whatever else the machine does falls on both; a ratio within the noise tells nothing.
    The report of a run shows what was measured here (ekgsearch report RUN).

    \b
    Examples:
      ekgsearch latency results/quickstart
      ekgsearch latency results/quickstart --batch 1,8,64 --backend eager --backend onnx
      ekgsearch latency small.safetensors --factory nets/mine.py:MyNet --out latencies.parquet
    """
    from ekgsearch.pipeline.finished import Given
    from ekgsearch.pipeline.latencies import TABLE, latency_table, measure
    from ekgsearch.rows.run import LatencyRow
    from ekgsearch.runtime.environment import default_threads, torch_threads
    from ekgsearch.runtime.progress import configure_logging
    from ekgsearch.storage.tables import append_rows

    configure_logging(None, verbose)
    sizes = batch.split(",")
    if not all(size.strip().isdigit() and int(size) for size in sizes):
        raise click.UsageError(f"--batch {batch}: expected numbers of images, such as 1,64")
    all_rows = []
    for place in networks:
        given = Given.find(place)
        with torch_threads(threads or default_threads()):
            rows = list(
                measure(
                    given,
                    [int(size) for size in sizes],
                    backends,  # type: ignore[arg-type]  # click has checked them
                    device=device,
                    factory=factory,
                    trust=trust_factory,
                )
            )
        all_rows += rows
        own = None if given.run_dir is None else given.run_dir / "tables" / f"{TABLE}.parquet"
        if (file := out or own) is not None:
            append_rows(file, rows, LatencyRow)
    click.echo(plain_text(latency_table(all_rows)))
