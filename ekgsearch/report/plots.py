"""Figures of what a run achieved and what it cost: accuracy over MACs, widths, device-hours, latency."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ekgsearch.report import numbers
from ekgsearch.report.curves import plot_learning, plot_rewards, plot_search, plot_stages
from ekgsearch.report.facts import baseline_name, hours_by_phase, is_fine_tuned, last_subnetwork, time_unit
from ekgsearch.report.published import UNPRUNED, published_for
from ekgsearch.report.speed import Speed, speeds
from ekgsearch.report.style import SERIES, colour, figure_style, label_point, new_figure, note
from ekgsearch.report.tables import RunTables, rows_of
from ekgsearch.report.varied import labels_of
from ekgsearch.rows.run import SummaryRow

FULL_WIDTH = 10.0
"""Width in inches of a figure that spans the page."""

HALF_WIDTH = 4.9
"""Width in inches of a figure that shares a line with another one."""

_MARKERS = "osD^vPX"


def plot_accuracy(run: RunTables) -> Figure:
    """Draw test accuracy over the share of MACs removed: before, after, baselines and published results."""
    with figure_style():
        figure = new_figure(FULL_WIDTH, 4.1)
        axes = figure.add_subplot()
        if run.summary is None:
            note(axes, "The run has not finished: no test accuracy yet.")
            return figure
        _before_after(axes, run.summary)
        _baselines(axes, run)
        _published(axes, run.summary)
        _finish_accuracy(axes)
    return figure


def plot_widths(run: RunTables) -> Figure:
    """Draw how many channels the last sub-network keeps of every channel group."""
    with figure_style():
        last = last_subnetwork(run).iloc[::-1]
        figure = new_figure(FULL_WIDTH, 1.0 + 0.165 * max(len(last), 6))
        axes = figure.add_subplot()
        if last.empty:
            note(axes, "No sub-network was recorded.")
            return figure
        places = range(len(last))
        axes.barh(places, last["size"], height=0.66, color=colour("track"), label="unpruned")
        axes.barh(places, last["num_kept"], height=0.66, color=colour("blue"), label="kept")
        for place, size, kept in zip(places, last["size"], last["num_kept"], strict=True):
            text = f"{kept} / {size}" if kept < size else f"{size}"
            label_point(axes, text, (size, place), (4, 0))
        axes.set_yticks(places, labels=list(last["channel_group"]), fontsize=7.8)
        axes.set_ylim(-0.7, len(last) - 0.3)
        axes.set_xlim(0, 1.06 * last["size"].max())
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("channels")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2)
    return figure


def plot_device_hours(run: RunTables, unit: numbers.TimeUnit | None = None) -> Figure:
    """Draw how long devices were held in each phase, busy and idle."""
    with figure_style():
        table = hours_by_phase(run).iloc[::-1]
        figure = new_figure(HALF_WIDTH, 2.9)
        axes = figure.add_subplot()
        if table.empty:
            note(axes, "No device-hours were recorded.")
            return figure
        unit = unit or time_unit([run])
        scale = unit.per_hour
        places = range(len(table))
        busy, idle = table["busy_hours"] * scale, table["idle_hours"] * scale
        axes.barh(places, busy, height=0.6, color=colour("blue"), label="busy, waits included")
        axes.barh(places, idle, left=busy, height=0.6, color=colour("sky"), label="idle")
        for place, hours in zip(places, table["device_hours"], strict=True):
            label_point(axes, unit.number(hours), (hours * scale, place), (4, 0), fontsize=8)
        axes.set_yticks(places, labels=list(table["phase"]))
        axes.set_xlim(0, 1.2 * float((busy + idle).max()) or 1.0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"device-{unit.name}")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def plot_latency(run: RunTables) -> Figure:
    """Draw the measured latency of the unpruned and the slim network at batch 1 and batch 64."""
    with figure_style():
        figure = new_figure(HALF_WIDTH, 2.9)
        left, right = figure.subplots(1, 2)
        measured = {speed.batch: speed for speed in (speeds(run.summary) if run.summary else [])}
        for axes, batch in ((left, 1), (right, 64)):
            _latency_pair(axes, f"batch {batch}", measured.get(batch))
    return figure


def plot_comparison(runs: Sequence[RunTables]) -> Figure:
    """Draw the test accuracy of several runs over the share of MACs removed; one colour: seeds differ alone."""
    with figure_style():
        figure = new_figure(FULL_WIDTH, 4.1)
        axes = figure.add_subplot()
        finished = [run.summary for run in runs if run.summary is not None]
        if not finished:
            note(axes, "None of the runs has finished: no test accuracy yet.")
            return figure
        labels = labels_of(finished)
        for number, kind in enumerate(dict.fromkeys(labels)):
            group = [s for s, label in zip(finished, labels, strict=True) if label == kind]
            shade, marker = colour(SERIES[number % len(SERIES)]), _MARKERS[number % len(_MARKERS)]
            removed = [100 * s.macs_reduction for s in group]
            label = kind if len(group) == 1 else f"{kind} ({len(group)} seeds)"
            axes.plot(removed, [s.final_top1 for s in group], marker, ms=7, color=shade, zorder=5, label=label)
            for s in group:
                start, end = (0.0, s.full_top1), (100 * s.macs_reduction, s.final_top1)
                axes.plot(*zip(start, end, strict=True), lw=0.9, alpha=0.35, color=shade, zorder=3)
            axes.plot([0.0] * len(group), [s.full_top1 for s in group], "o", ms=5, mfc=colour("surface"), color=shade)
        if len({(s.dataset, s.architecture) for s in finished}) == 1:
            _published(axes, finished[0])
        _finish_accuracy(axes)
    return figure


PLOTS: dict[str, Callable[[RunTables], Figure]] = {
    "accuracy": plot_accuracy,
    "search": plot_search,
    "widths": plot_widths,
    "rewards": plot_rewards,
    "learning": plot_learning,
    "stages": plot_stages,
    "device_hours": plot_device_hours,
    "latency": plot_latency,
}
"""All figures of one run by the name of their file, in the order of the report."""


def _published(axes: Axes, s: SummaryRow) -> None:
    table = published_for(s.dataset, s.architecture)
    table = table[table["top1"].notna() & table["macs_reduction"].notna()]
    pruned = table[table["method"] != UNPRUNED]
    if pruned.empty:
        return
    look: dict[str, Any] = {"color": colour("faint"), "zorder": 2}
    axes.plot(100 * table["macs_reduction"], table["top1"], "d", ms=4.6, label="published", **look)
    for _, part in pruned.groupby("method"):
        axes.plot(100 * part["macs_reduction"], part["top1"], lw=0.8, alpha=0.55, **look)
    own = [(0.0, s.full_top1), *((100 * s.macs_reduction, y) for y in (s.final_top1, s.plain_top1, s.uniform_top1))]
    _name_methods(axes, pruned, own)


def _name_methods(axes: Axes, pruned: pd.DataFrame, own: Sequence[tuple[float, float]]) -> None:
    """Write each method's name once, above or below one of its points, best first, where nothing is in the way."""
    ranked = pruned.sort_values("top1", ascending=False)
    line = 0.05 * max(float(ranked["top1"].max() - ranked["top1"].min()), 0.5)
    points = [*own, *zip(100 * ranked["macs_reduction"], ranked["top1"], strict=True)]
    names: list[tuple[float, float]] = []
    named: set[str] = set()
    for method, removed, y in zip(ranked["method"], ranked["macs_reduction"], ranked["top1"], strict=True):
        x, half = 100 * removed, 0.45 * len(method)
        for height, offset in ((y + line, 6), (y - line, -13)):
            clear = all(abs(x - at) > half + 3 or abs(height - other) > line for at, other in names)
            clear = clear and all(abs(x - at) > half or abs(height - other) > 0.7 * line for at, other in points)
            if clear and method not in named:
                names.append((x, height))
                named.add(method)
                label_point(axes, method, (x, y), (0, offset), ha="center", va="baseline", zorder=2)


def _baselines(axes: Axes, run: RunTables) -> None:
    s, rows = run.summary, rows_of(run.baselines)
    assert s is not None, "there are baselines of a run that has finished only"
    at, points = 100 * s.macs_reduction, [("same widths, plain fine-tuning", 100 * s.macs_reduction, s.plain_top1)]
    if not any(row["network"] == "uniform" for row in rows):
        points.append(("uniform width, plain fine-tuning", at, s.uniform_top1))
    cut = [row for row in rows if row["network"] not in ("plain", "scratch")]
    points += [(baseline_name(row), 100 * row["macs_reduction"], row["top1"]) for row in cut]
    points += [("same widths, fresh weights", at, row["top1"]) for row in rows if row["network"] == "scratch"]
    shades = ("orange", "purple", *(shade for shade in SERIES if shade not in ("orange", "purple", "blue")))
    for number, (name, removed, value) in enumerate(point for point in points if numbers.known(point[2])):
        shade, marker = shades[number % len(shades)], "s^Dv<>pP*X"[number % 10]
        axes.plot(removed, value, marker, ms=7, color=colour(shade), label=name, zorder=4)


def _before_after(axes: Axes, s: SummaryRow) -> None:
    removed = 100 * s.macs_reduction
    blue = colour("blue")
    arrow = {"arrowstyle": "-|>", "color": blue, "lw": 1.3, "shrinkA": 6, "shrinkB": 6}
    axes.annotate("", (removed, s.final_top1), (0, s.full_top1), arrowprops=arrow, zorder=4)
    label = f"unpruned, {numbers.top1(s.full_top1)} %"
    axes.plot(0, s.full_top1, "o", ms=8, mfc=colour("surface"), mew=2, color=blue, zorder=5, label=label)
    tuned = "" if is_fine_tuned(s) else "not fine-tuned, "
    label = f"this run, {tuned}{numbers.top1(s.final_top1)} %"
    axes.plot(removed, s.final_top1, "o", ms=9, color=blue, zorder=6, label=label)


def _finish_accuracy(axes: Axes) -> None:
    axes.set_xlabel("MACs removed (%)")
    axes.set_ylabel("test top-1 (%)", labelpad=7)
    axes.set_xlim(-3, max(60.0, axes.get_xlim()[1]))
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    assert axes.figure is not None
    axes.figure.legend(loc="outside upper left", ncols=3 if len(axes.get_legend_handles_labels()[1]) > 5 else 5)


def _latency_pair(axes: Axes, title: str, speed: Speed | None) -> None:
    if speed is None:
        note(axes, f"{title}\nnot measured")
        return
    values = pd.Series({"unpruned": speed.full_ms, "slim": speed.slim_ms})
    shades = [colour("faint") if name == "unpruned" else colour("blue") for name in values.index]
    bars = axes.bar(list(values.index), values, width=0.58, color=shades)
    axes.bar_label(bars, labels=[numbers.milliseconds(value) for value in values], padding=2, fontsize=8.5)
    axes.set_ylim(0, 1.18 * values.max())
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{title}: {speed.factor}")
