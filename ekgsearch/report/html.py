"""The report of one run, or of several side by side: one HTML file that needs nothing but a browser."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ekgsearch.errors import StorageError
from ekgsearch.report import facts, headline, numbers
from ekgsearch.report.curves import plot_objectives
from ekgsearch.report.plots import PLOTS, plot_comparison, plot_device_hours
from ekgsearch.report.published import UNPRUNED, published_for
from ekgsearch.report.speed import speeds
from ekgsearch.report.style import to_png, to_svg
from ekgsearch.report.tables import RunTables, load_run, rows_of
from ekgsearch.report.varied import settings_of_run, varied_fields
from ekgsearch.storage.files import file_sha256, make_folder, write_atomically
from ekgsearch.version import __version__

MAX_DETAILED_RUNS = 8
"""Up to this many runs, a comparison contains the whole report of each."""

_OWN_COLUMNS = ("search.method", "finetune.objective", "net.name", "data.name")
"""Fields that a comparison shows without being asked."""

_FILES = ("job.yaml", "journal.jsonl", "subnetwork.json", "slim.safetensors", "final.safetensors")


def write_report(run_dirs: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write a self-contained HTML report and, beside it, its figures as PNG files.

    A run that was stopped gets a report of what it did, which says what is missing.

    Args:
        run_dirs: one run directory, or several to compare.
        out: the file to write, `.html`. By default report.html in the directory of a single run, comparison.html in
            the folder that holds the first of several.

    Returns:
        The file that was written. The figures are in the folder `plots` beside it.

    Raises:
        StorageError: the file is no `.html`, a folder is no run directory, a table is damaged, or the disk refuses.
    """
    check_is_html(out)
    if not run_dirs:
        raise StorageError("expected at least one run directory, found none; name the folders to report on")
    runs = [load_run(run_dir) for run_dir in run_dirs]
    target = _target(runs, out)
    figures = target.parent / "plots"
    unit = facts.time_unit(runs)
    make_folder(figures)
    if len(runs) == 1:
        shown = [_run_context(runs[0], "run", figures, unit)]
        context = {"title": headline.title(runs[0]), "runs": shown, "several": None, "unit": unit}
    else:
        context = _comparison_context(runs, figures, unit)
    write_atomically(target, _render(context).encode())
    return target


def check_is_html(out: Path | str | None) -> None:
    """Refuse another format than a report has.

    Raises:
        StorageError: the file is no `.html`.
    """
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise StorageError(f"--out {out}: expected a file that ends in .html, the format to write")


def _target(runs: Sequence[RunTables], out: Path | str | None) -> Path:
    if out is not None:
        return Path(out)
    return runs[0].path / "report.html" if len(runs) == 1 else runs[0].path.parent / "comparison.html"


def _render(context: Mapping[str, Any]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        count=numbers.count,
        top1=numbers.top1,
        signed=numbers.signed,
        share=numbers.share,
    )
    environment.globals.update(fine_tuning=facts.fine_tuning, speeds=speeds)
    template, style = (
        files("ekgsearch.report").joinpath(name).read_text(encoding="utf-8") for name in ("report.html", "style.css")
    )
    return environment.from_string(template).render(
        version=__version__, dash=numbers.NONE, style=Markup(style), **context
    )


def _run_context(run: RunTables, key: str, figures: Path | None, unit: numbers.TimeUnit) -> dict[str, Any]:
    """Collect what the template shows of one run; its figures are saved as PNG where a folder is given."""
    s = run.summary
    return {
        "key": key,
        "run": run,
        "title": headline.title(run),
        "tiles": headline.tiles(run, unit),
        "verdict": facts.verdict(s, run.baselines) if s else "",
        "lines": headline.result_lines(s, run.baselines) if s else [],
        "published": _published(run),
        "plots": _plots(run, key, figures, unit),
        "remarks": {
            "missing": facts.missing_remark(run),
            "rivals": facts.rivals_remark(run),
            "warnings": s.warnings if s else "",
            "search": facts.search_remark(run),
            "audit": facts.audit_remark(run),
            "widths": facts.width_remark(run),
            "speed": facts.speed_remark(s) if s else "",
        },
        "trainings": rows_of(facts.last_epochs(run)),
        "phases": rows_of(facts.hours_by_phase(run)),
        "latencies": rows_of(run.latencies),
        "widths": rows_of(facts.last_subnetwork(run)),
        "provenance": [(name, _text(value)) for name, value in run.provenance.items()],
        "files": [(name, file_sha256(run.path / name)) for name in _FILES if (run.path / name).is_file()],
    }


def _plots(run: RunTables, key: str, figures: Path | None, unit: numbers.TimeUnit) -> dict[str, Markup]:
    needs = {
        "accuracy": run.summary is not None,
        "search": not run.iterations.empty,
        "widths": not run.subnetworks.empty,
        "rewards": not run.candidates.empty,
        "learning": not run.epochs.empty,
        "stages": not run.stages.empty,
        "device_hours": not run.device_hours.empty,
        "latency": run.summary is not None and bool(speeds(run.summary)),
    }
    made = {}
    for name, plot in PLOTS.items():
        if not needs[name]:
            continue
        figure = plot_device_hours(run, unit) if plot is plot_device_hours else plot(run)
        if figures is not None:
            write_atomically(figures / f"{name}.png", to_png(figure))
        label = (plot.__doc__ or name).splitlines()[0].removeprefix("Draw ").rstrip(".")
        made[name] = Markup(to_svg(figure, f"Figure: {label}", f"{key}-{name}"))
    return made


def _published(run: RunTables) -> list[dict[str, Any]]:
    if run.summary is None:
        return []
    table = published_for(run.summary.dataset, run.summary.architecture)
    ordered = table.assign(base=table["method"] == UNPRUNED).sort_values(["base", "macs_reduction"], kind="stable")
    return rows_of(ordered)


def _comparison_context(runs: Sequence[RunTables], figures: Path, unit: numbers.TimeUnit) -> dict[str, Any]:
    plots = {
        "comparison": (plot_comparison(runs), "test accuracy over the share of MACs removed"),
        "objectives": (plot_objectives(runs), "test accuracy over the epochs of the fine-tuning"),
    }
    for name, (figure, _) in plots.items():
        write_atomically(figures / f"{name}.png", to_png(figure))
    finished = [run.summary for run in runs if run.summary is not None]
    varied = [name for name in varied_fields([settings_of_run(s) for s in finished]) if name not in _OWN_COLUMNS]
    detailed = runs if len(runs) <= MAX_DETAILED_RUNS else []
    return {
        "unit": unit,
        "title": f"Comparison of {len(runs)} runs",
        "runs": [_run_context(run, f"run{number}", None, unit) for number, run in enumerate(detailed, start=1)],
        "several": {
            "plots": {
                name: Markup(to_svg(figure, f"Figure: {label}", name)) for name, (figure, label) in plots.items()
            },
            "varied": [name.rpartition(".")[2] for name in varied],
            "rows": [_comparison_row(run, varied) for run in runs],
            "best": max((s.final_top1 for s in finished if numbers.known(s.final_top1)), default=None),
            "seeds": rows_of(facts.over_seeds(finished)),
        },
    }


def _comparison_row(run: RunTables, varied: Sequence[str]) -> dict[str, Any]:
    hours = run.summary.device_hours if run.summary else float(run.device_hours["device_hours"].sum())
    settings = settings_of_run(run.summary) if run.summary else {}
    return {
        "name": run.name,
        "summary": run.summary,
        "values": [_text(settings[name]) if name in settings else numbers.NONE for name in varied],
        "hours": hours,
        "missing": facts.missing_remark(run),
    }


def _text(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict) and all(isinstance(item, str | int | float) for item in value.values()):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)
