"""Figure of a sweep over time: which trial was at which phase when."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ekgsearch.report.style import colour, figure_style, new_figure, note
from ekgsearch.report.tables import rows_of

WIDTH = 10.0

_SHADES = {"pretrain": "purple", "warmup": "faint", "search": "blue", "bank": "sky", "finetune": "green"}

_LETTER = 0.0042
"""Width of a letter of a label, as a share of that of the figure."""

Lanes = Mapping[tuple[int, str], int]
"""Lane of a trial in a call of the command."""


def plot_timeline(spans: pd.DataFrame, trials: pd.DataFrame) -> Figure:
    """Draw the phases of the trials over time, in as many lanes as trials ran at a time.

    Args:
        spans: rows of the table of spans.
        trials: rows of the table of trials.
    """
    lanes, offsets = _lanes(spans), _offsets(spans)
    with figure_style():
        figure = new_figure(WIDTH, 1.5 + 0.6 * max(1, len(set(lanes.values()))))
        axes = figure.add_subplot()
        if spans.empty:
            note(axes, "Nothing was written down.")
            return figure
        for row in rows_of(spans):
            _draw(axes, row, lanes[row["call"], row["run"]], offsets[row["call"]])
        _name(axes, spans, trials, lanes, offsets)
        for offset in list(offsets.values())[1:]:
            axes.axvline(offset, color=colour("ink"), lw=1, ls=":")
        numbers = sorted(set(lanes.values()))
        axes.set_yticks(numbers, labels=[str(number + 1) for number in numbers])
        axes.set_ylim(max(numbers) + 0.6, -0.8)
        axes.set_ylabel("trials at a time")
        axes.set_xlabel("seconds" + ("; dotted: the command was called again" if len(offsets) > 1 else ""))
        axes.grid(visible=False, axis="y")
        _legend(figure, [_kind(phase) for phase in spans["phase"].unique()])
    return figure


def _draw(axes: Axes, row: Mapping[str, Any], lane: int, offset: float) -> None:
    shade, taken = colour(_SHADES.get(_kind(row["phase"]), "muted")), row["producer"] != row["run"]
    start, width = row["start_seconds"] + offset, row["end_seconds"] - row["start_seconds"]
    look: dict[str, Any] = {"color": colour("surface"), "hatch": "////"} if taken else {"color": shade}
    axes.barh(lane, width, left=start, height=0.6, lw=0.6, **{**look, "edgecolor": shade})
    if row["end"] != "committed":
        mark = colour("orange" if row["end"] == "stopped" else "ink")
        axes.plot(start + width, lane, "X", ms=7, color=mark, zorder=5)


def _name(axes: Axes, spans: pd.DataFrame, trials: pd.DataFrame, lanes: Lanes, offsets: Mapping[int, float]) -> None:
    """Write the label of every trial over its first span."""
    labels = dict(zip(trials["run"], trials["label"], strict=True))
    whole = max(row["end_seconds"] + offsets[row["call"]] for row in rows_of(spans))
    for call, run in lanes:
        part = spans[(spans["call"] == call) & (spans["run"] == run)]
        start, end = float(part["start_seconds"].min()), float(part["end_seconds"].max())
        label = labels.get(run, run)
        if end - start > _LETTER * len(label) * whole:  # there is room for it
            look: dict[str, Any] = {"fontsize": 6.3, "color": colour("muted"), "va": "bottom", "clip_on": True}
            axes.text(start + offsets[call], lanes[call, run] - 0.34, label, **look)


def _legend(figure: Figure, kinds: list[str]) -> None:
    shown = list(dict.fromkeys(kinds))
    handles: list[Any] = [Patch(color=colour(_SHADES.get(kind, "muted"))) for kind in shown]
    handles.append(Patch(facecolor=colour("surface"), edgecolor=colour("muted"), hatch="////"))
    handles += [Line2D([], [], marker="X", ls="", color=colour(shade)) for shade in ("orange", "ink")]
    names = [*shown, "taken over", "stopped early", "failed, interrupted"]
    figure.legend(handles, names, loc="outside upper left", ncols=len(names))


def _kind(phase: str) -> str:
    return phase.partition("-")[0]


def _lanes(spans: pd.DataFrame) -> dict[tuple[int, str], int]:
    """Give every trial of a call the first lane that is free when it begins."""
    found: dict[tuple[int, str], int] = {}
    for call in spans["call"].unique():
        part = spans[spans["call"] == call]
        ends: list[float] = []
        runs = part.groupby("run").agg(start=("start_seconds", "min"), end=("end_seconds", "max")).sort_values("start")
        for run, start, end in runs.itertuples():
            lane = next((number for number, free in enumerate(ends) if free <= start), len(ends))
            ends[lane : lane + 1] = [end]
            found[int(call), str(run)] = lane
    return found


def _offsets(spans: pd.DataFrame) -> dict[int, float]:
    """Seconds before each call of the command, without those between the calls."""
    offsets, passed = {}, 0.0
    for call in spans["call"].unique():
        offsets[int(call)] = passed
        passed += float(spans.loc[spans["call"] == call, "end_seconds"].max())
    return offsets
