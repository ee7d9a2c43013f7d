"""Figures of what the trials of a sweep reached: Pareto fronts, parallel coordinates, importance of fields."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ekgsearch.report.importance import importance
from ekgsearch.report.style import SERIES, colour, figure_style, label_point, new_figure, note
from ekgsearch.sweep.results import front

WIDTH = 10.0

_MARKERS = "osD^vPX"

_MOST_TICKS = 12

COSTS = {
    "macs": ("macs_reduction", 100, "MACs removed (%)", "max"),
    "device_hours": ("device_hours", 3600, "device-seconds that the trial would cost by itself", "min"),
    "latency": ("latency_ms", 1, "time of one image (ms)", "min"),
}
"""What accuracy is drawn over: column, its factor, label of the axis, and which end of it is better."""


def plot_front(trials: pd.DataFrame, cost: str) -> Figure:
    """Draw test accuracy over a cost: every trial by its label, and those that no other one surpasses in both.

    Args:
        trials: rows of the table of trials.
        cost: one of `COSTS`.
    """
    column, factor, label, better = COSTS[cost]
    done = trials[(trials["state"] == "finished") & trials[column].notna()].assign(
        x=lambda table: factor * table[column]
    )
    with figure_style():
        figure = new_figure(WIDTH, 4.3)
        axes = figure.add_subplot()
        if done.empty:
            note(axes, "No latency was measured." if cost == "latency" else "No trial has finished.")
            return figure
        for number, (method, rows) in enumerate(done.groupby("method", sort=False)):
            marker, shade = _MARKERS[number % len(_MARKERS)], colour(SERIES[number % len(SERIES)])
            axes.plot(rows["x"], rows["accuracy"], marker, ms=6.5, color=shade, label=str(method), zorder=4)
        sign = 1 if better == "min" else -1
        judged = [{"accuracy": y, "kept_macs": sign * x} for x, y in zip(done["x"], done["accuracy"], strict=True)]
        best = done.iloc[sorted(front(judged, {"accuracy": "max", "kept_macs": "min"}))].sort_values("x")
        axes.plot(
            best["x"], best["accuracy"], color=colour("ink"), lw=1.0, zorder=3, label="no other is better in both"
        )
        for number, ((x, y), labels) in enumerate(_at_one_point(done).items()):
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            offset = (0, 8) if number % 2 else (0, -9)
            label_point(axes, labels[0] + more, (x, y), offset, ha="center", fontsize=6.8)
        axes.set_xlabel(label)
        axes.set_ylabel("test top-1 (%)")
        axes.margins(0.09, 0.14)
        figure.legend(loc="outside upper left", ncols=6)
    return figure


def plot_parallel(trials: pd.DataFrame, varied: Sequence[str]) -> Figure:
    """Draw every trial as a line through its values and its results, coloured by its accuracy."""
    with figure_style():
        figure = new_figure(WIDTH, 3.9)
        axes = figure.add_subplot()
        known = trials[trials["accuracy"].notna()]
        if known.empty:
            note(axes, "No trial has an accuracy.")
            return figure
        scales = [*(_of_field(name, known) for name in varied), *_of_results(known)]
        judged = known[known["state"] == "finished"]
        low, high = (judged if len(judged) > 1 else known)["accuracy"].agg(["min", "max"])
        for order, row in enumerate(known.sort_values("accuracy").to_dict("records"), start=2):
            shade = _between("sky", "orange", min(max((row["accuracy"] - low) / ((high - low) or 1.0), 0.0), 1.0))
            heights = {place: scale.heights.get(row["run"], math.nan) for place, scale in enumerate(scales)}
            line = {place: height for place, height in heights.items() if not math.isnan(height)}
            dash: Any = "-" if row["state"] == "finished" else (0, (2, 2))
            axes.plot(list(line), list(line.values()), color=shade, ls=dash, lw=1.4, marker="o", ms=3, zorder=order)
        for place, scale in enumerate(scales):
            axes.axvline(place, color=colour("faint"), lw=0.8, zorder=1)
            for height, text in scale.ticks:
                label_point(axes, text, (place, height), (5, 0), zorder=len(known) + 3)
        axes.set_xticks(range(len(scales)), labels=[scale.title for scale in scales])
        axes.set_yticks([])
        axes.set_xlim(-0.15, len(scales) - 0.55)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        lines = [Line2D([], [], color=colour(name), lw=2) for name in ("orange", "sky")]
        lines.append(Line2D([], [], color=colour("muted"), ls=(0, (2, 2))))
        figure.legend(lines, ["highest accuracy", "lowest", "not finished"], loc="outside upper left", ncols=3)
    return figure


def plot_importance(trials: pd.DataFrame, varied: Sequence[str]) -> Figure:
    """Draw how much of the spread of each result every varied field explains."""
    results = {"accuracy": "test accuracy", "macs_reduction": "MACs removed", "device_hours": "device-hours"}
    found = {title: importance(trials, varied, column) for column, title in results.items()}
    with figure_style():
        figure = new_figure(WIDTH, 1.3 + 0.5 * max(1, len(varied)))
        axes = figure.add_subplot()
        if not any(found.values()):
            note(axes, "Too few finished trials to tell what each field matters.")
            return figure
        height = 0.8 / len(found)
        for number, (title, shares) in enumerate(found.items()):
            places = [index + (number - 1) * height for index in range(len(varied))]
            values = [shares.get(name, math.nan) for name in varied]
            axes.barh(places, values, height=0.9 * height, color=colour(SERIES[number]), label=title)
        axes.set_yticks(range(len(varied)), labels=list(varied))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("loss of R² where the values of the field are shuffled")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _at_one_point(trials: pd.DataFrame) -> dict[tuple[float, float], list[str]]:
    """Labels of the trials by their point, from left to right."""
    found: dict[tuple[float, float], list[str]] = {}
    for row in trials.sort_values(["x", "accuracy"]).to_dict("records"):
        found.setdefault((row["x"], row["accuracy"]), []).append(row["label"])
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """One upright axis: heights of the trials on it, 0..1, and what is written at which height."""

    title: str
    heights: Mapping[str, float]
    ticks: Sequence[tuple[float, str]]


def _of_field(name: str, trials: pd.DataFrame) -> _Scale:
    """The values of a varied field: numbers by size, others in the order in which they come."""
    texts = {row["run"]: dict(row["values"])[name] for row in trials.to_dict("records") if name in dict(row["values"])}
    values = {text: json.loads(text) for text in texts.values()}
    if all(isinstance(value, int | float) for value in values.values()):
        order = sorted(values, key=lambda text: float(values[text]))
    else:
        order = list(values)
    place = {text: index / max(1, len(order) - 1) for index, text in enumerate(order)}
    shown = order if len(order) <= _MOST_TICKS else [order[0], order[-1]]
    ticks = [
        (place[text], f"{values[text]:g}" if isinstance(values[text], float) else text.strip('"')) for text in shown
    ]
    return _Scale(name.rpartition(".")[2], {run: place[text] for run, text in texts.items()}, ticks)


def _of_results(trials: pd.DataFrame) -> list[_Scale]:
    columns = {
        "MACs removed (%)": 100 * trials["macs_reduction"],
        "device-seconds": 3600 * trials["device_hours"],
        "top-1 (%)": trials["accuracy"],
    }
    scales = []
    for title, values in columns.items():
        low, high = float(values.min()), float(values.max())
        heights = (values - low) / ((high - low) or 1.0)
        ticks = [] if math.isnan(low) else [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]
        scales.append(_Scale(title, dict(zip(trials["run"], heights, strict=True)), ticks))
    return scales


def _between(low: str, high: str, share: float) -> tuple[float, ...]:
    """A colour between two of the palette."""
    return tuple(a + share * (b - a) for a, b in zip(to_rgb(colour(low)), to_rgb(colour(high)), strict=True))
