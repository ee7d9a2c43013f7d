"""The report of a sweep: one HTML file that needs nothing but a browser."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ekgsearch.errors import StorageError
from ekgsearch.report import numbers
from ekgsearch.report.html import check_is_html
from ekgsearch.report.importance import METHOD
from ekgsearch.report.style import to_png, to_svg
from ekgsearch.report.sweep_results import plot_front, plot_importance, plot_parallel
from ekgsearch.report.sweep_timeline import plot_timeline
from ekgsearch.report.tables import rows_of
from ekgsearch.storage.files import make_folder, read_bytes, write_atomically
from ekgsearch.storage.tables import fitted, read_arrow, schema
from ekgsearch.sweep.results import varying
from ekgsearch.sweep.rows import TABLES
from ekgsearch.version import __version__


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / "tables" / "trials.parquet").is_file()


def load_sweep_table(folder: Path, name: str) -> pd.DataFrame:
    """Read a table of a sweep; maps are dictionaries.

    Raises:
        StorageError: the folder is no sweep, or the table is damaged.
    """
    path = folder / "tables" / f"{name}.parquet"
    if not path.is_file():
        raise StorageError(
            f"{folder} is no sweep: expected tables/{name}.parquet in it; give the folder that `ekgsearch tune` wrote"
        )
    table = fitted(read_arrow(path), TABLES[name], str(path))
    return pd.DataFrame(table.to_pylist(maps_as_pydicts="strict"), columns=schema(TABLES[name]).names)


def write_sweep_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a sweep and, next to it, its figures as PNG files; also while it is under way.

    Args:
        folder: directory of the sweep.
        out: the file to write, `.html`; by default report.html in the folder.

    Returns:
        The file that was written.

    Raises:
        StorageError: the folder is no sweep, a table is damaged, or the disk refuses.
    """
    check_is_html(out)
    trials = load_sweep_table(folder, "trials").sort_values("number")
    spans = load_sweep_table(folder, "spans")
    varied = varying(list(trials["values"]))
    target = out or folder / "report.html"
    plots = {
        "front": (plot_front(trials, "macs"), "test accuracy over the share of MACs removed"),
        "front_device_hours": (plot_front(trials, "device_hours"), "test accuracy over device-hours"),
        "front_latency": (plot_front(trials, "latency"), "test accuracy over latency"),
        "parallel": (plot_parallel(trials, varied), "values and results of every trial"),
        "importance": (plot_importance(trials, varied), "importance of the varied fields"),
        "timeline": (plot_timeline(spans, trials), "trials over time"),
    }
    make_folder(target.parent / "plots")
    for name, (figure, _) in plots.items():
        write_atomically(target.parent / "plots" / f"{name}.png", to_png(figure))
    context = {
        "title": f"Sweep {folder.resolve().name}",
        "plots": {name: _markup(figure, label, name) for name, (figure, label) in plots.items()},
        "varied": [name.rpartition(".")[2] for name in varied],
        "rows": [_row(row, varied) for row in rows_of(trials)],
        "words": _words(trials),
        "importance_method": METHOD,
        "unit": numbers.TimeUnit.of(float(trials["added_hours"].sum())),
        "job": read_bytes(folder / "tune.yaml").decode() if (folder / "tune.yaml").is_file() else "",
    }
    write_atomically(target, _render(context).encode())
    return target


def sweep_text(folder: Path) -> str:
    """The trials of the front, and what the sweep cost, in a few lines for a terminal."""
    trials = load_sweep_table(folder, "trials")
    lines = [_words(trials)]
    best = trials[trials["on_front"].astype(bool)].sort_values("accuracy", ascending=False)
    width = max([len(label) for label in best["label"]], default=0)
    for row in rows_of(best):
        latency = f"  {numbers.milliseconds(row['latency_ms'])}" if numbers.known(row["latency_ms"]) else ""
        lines.append(
            f"  {row['label']:<{width}}  top-1 {numbers.top1(row['accuracy'])} %  MACs removed "
            f"{numbers.share(row['macs_reduction'])}{latency}  {row['run']}"
        )
    return "\n".join(["", lines[0], *(["on the Pareto front:"] if len(lines) > 1 else []), *lines[1:]])


def _words(trials: pd.DataFrame) -> str:
    states = trials["state"].value_counts()
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    unit = numbers.TimeUnit.of(float(trials["added_hours"].sum()))
    added, saved = (unit.number(float(trials[name].sum())) for name in ("added_hours", "saved_hours"))
    return (
        f"{len(trials)} trials: {counted or 'none yet'}. {added} device-{unit.name} spent; without sharing phases, "
        f"{saved} more."
    )


def _row(row: Mapping[str, Any], varied: list[str]) -> dict[str, Any]:
    values = [str(row["values"].get(name, numbers.NONE)).strip('"') for name in varied]
    return {**row, "shown": values}


def _markup(figure: Figure, label: str, key: str) -> Markup:
    return Markup(to_svg(figure, f"Figure: {label}", key))


def _render(context: Mapping[str, Any]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        top1=numbers.top1, share=numbers.share, count=numbers.count, milliseconds=numbers.milliseconds
    )
    style = Markup(files("ekgsearch.report").joinpath("style.css").read_text(encoding="utf-8"))
    template = files("ekgsearch.report").joinpath("sweep.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(version=__version__, dash=numbers.NONE, style=style, **context)
