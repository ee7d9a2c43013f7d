"""Figures of how a run went: search trajectory, rewards of the candidates, learning curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ekgsearch.report.facts import in_order
from ekgsearch.report.style import DASHES, SERIES, colour, figure_style, new_figure, note
from ekgsearch.report.tables import RunTables
from ekgsearch.report.varied import labels_of

_WIDTH = 10.0
_MANY_POINTS = 4000


def plot_search(run: RunTables) -> Figure:
    """Draw loss, score and accuracy on the search subset and what was removed, iteration by iteration."""
    with figure_style():
        table = run.iterations
        figure = new_figure(_WIDTH, 3.3)
        if table.empty:
            note(figure.add_subplot(), "No search iteration was recorded.")
            return figure
        losses, accuracy, removed = figure.subplots(1, 3)
        _lines(losses, table, {"score": "score (loss + ensemble knowledge)", "loss": "loss"})
        _mark_teachers(losses, run)
        losses.set_title("Search subset: loss, nats per image")
        losses.legend(loc="upper left")
        _lines(accuracy, table, {"search_top1": "top-1"})
        accuracy.set_title("Search subset: top-1 (%)")
        low, high = accuracy.get_ylim()
        accuracy.set_ylim(low, min(high, 100 + 0.05 * (100 - low)))  # nobody has more than 100 %
        percent = table.assign(macs=100 * table["macs_reduction"], params=100 * table["params_reduction"])
        _lines(removed, percent, {"macs": "MACs", "params": "parameters"})
        removed.set_title("Removed (%)")
        removed.set_ylim(bottom=0)
        removed.legend(loc="upper left")
        for axes in (losses, accuracy, removed):
            _count_axis(axes, "search iteration")
    return figure


def plot_rewards(run: RunTables) -> Figure:
    """Draw the reward of every candidate by search iteration, the winners marked and joined."""
    with figure_style():
        table = run.candidates
        figure = new_figure(_WIDTH, 3.3)
        axes = figure.add_subplot()
        finite = table[np.isfinite(table["reward"].astype(float))]
        if finite.empty:
            note(axes, "No candidate was recorded.")
            return figure
        won = finite[finite["won"].astype(bool)]
        rest = finite.drop(won.index)
        flat = len(rest) > _MANY_POINTS
        label = f"candidates ({len(rest)})"
        label += f", {len(table) - len(finite)} more not finite" if len(finite) < len(table) else ""
        axes.plot(
            rest["iteration"], rest["reward"], "o", ms=3, mew=0, color=colour("faint"), label=label, rasterized=flat
        )
        label = f"taken ({len(won)})"
        axes.plot(won["iteration"], won["reward"], "o-", ms=4.2, lw=1.1, color=colour("blue"), label=label)
        _limit_to_bulk(axes, finite["reward"], won["reward"])
        axes.set_ylabel("reward (negative score)")
        _count_axis(axes, "search iteration")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def plot_stages(run: RunTables) -> Figure:
    """Draw test accuracy after the training of every stage over the share of MACs removed."""
    with figure_style():
        table = run.stages
        figure = new_figure(_WIDTH, 3.3)
        axes = figure.add_subplot()
        if table.empty:
            note(axes, "No network was cut in stages.")
            return figure
        for number, (network, rows) in enumerate(table.groupby("network", sort=False)):
            shade, held = colour(SERIES[number % len(SERIES)]), rows[rows["held"].astype(bool)]
            start = pd.DataFrame({"macs_reduction": [0.0], "top1": [run.summary.full_top1 if run.summary else np.nan]})
            line = pd.concat([start, held[["macs_reduction", "top1"]]])
            axes.plot(100 * line["macs_reduction"], line["top1"], "o-", ms=4.2, lw=1.1, color=shade, label=network)
            fallen = rows.drop(held.index)
            axes.plot(100 * fallen["macs_reduction"], fallen["top1"], "x", ms=6, color=shade)
        axes.set_xlabel("MACs removed (%); a cross: fell too far, the stage before it stays")
        axes.set_ylabel("test top-1 (%)")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def plot_learning(run: RunTables) -> Figure:
    """Draw accuracy and loss over the epochs, one column of panels for pre-training and one for fine-tuning."""
    with figure_style():
        phases = [phase for phase in in_order(run.epochs["phase"].unique()) if _epochs(run.epochs, phase) > 1]
        figure = new_figure(_WIDTH, 4.9)
        if not phases:
            note(figure.add_subplot(), "No training of more than one epoch was recorded.")
            return figure
        panels = figure.subplots(2, len(phases), squeeze=False, sharex="col")
        for number, phase in enumerate(phases):
            upper, lower = panels[0][number], panels[1][number]
            curves = _curves(run.epochs[run.epochs["phase"] == phase])
            _accuracy_panel(upper, curves, phase)
            _loss_panel(lower, curves)
            _count_axis(lower, "epoch")
    return figure


def plot_objectives(runs: Sequence[RunTables]) -> Figure:
    """Draw test accuracy over the epochs of several fine-tunings; runs of one colour differ in their seeds alone."""
    with figure_style():
        figure = new_figure(_WIDTH, 3.6)
        axes = figure.add_subplot()
        tuned = [(run.summary, _tested(run)) for run in runs if run.summary is not None]
        known = [(summary, rows) for summary, rows in tuned if not rows.empty]
        if not known:
            note(axes, "None of the runs was fine-tuned.")
            return figure
        labels = labels_of([summary for summary, _ in known])
        for number, kind in enumerate(dict.fromkeys(labels)):
            shade, dash = colour(SERIES[number % len(SERIES)]), DASHES[number // len(SERIES) % len(DASHES)]
            group = [rows for label, (_, rows) in zip(labels, known, strict=True) if label == kind]
            for index, rows in enumerate(group):
                dot = "o" if len(rows) == 1 else None  # a line of one point would be invisible
                name = kind if index == 0 else "_"
                axes.plot(rows["epoch"], rows["test_top1"], color=shade, ls=dash, lw=1.1, marker=dot, label=name)
        axes.set_ylabel("test top-1 (%)")
        _count_axis(axes, "epoch of the fine-tuning")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _tested(run: RunTables) -> pd.DataFrame:
    """Epochs of the fine-tuning of the slim network after which it was tested."""
    rows = run.epochs
    rows = rows[(rows["phase"] == "finetune") & (rows["network"] == "slim") & rows["test_top1"].notna()]
    last: pd.DataFrame = rows.drop_duplicates("epoch", keep="last").sort_values("epoch")
    return last


def _lines(axes: Axes, table: pd.DataFrame, labels: dict[str, str]) -> None:
    for number, (name, label) in enumerate(labels.items()):
        shade, dash = colour(SERIES[number]), DASHES[number]
        axes.plot(table["iteration"], table[name], color=shade, ls=dash, label=label)


def _mark_teachers(axes: Axes, run: RunTables) -> None:
    rows = run.subnetworks
    chosen = set(rows.loc[rows["teacher"] >= 0, "iteration"])
    table = run.iterations[run.iterations["iteration"].isin(chosen)]
    if table.empty:
        return
    look: dict[str, Any] = {"mfc": colour("surface"), "mew": 1.4, "color": colour("orange"), "zorder": 4}
    axes.plot(table["iteration"], table["loss"], "D", ms=4.6, label="chosen as teacher", **look)


def _limit_to_bulk(axes: Axes, rewards: pd.Series, won: pd.Series) -> None:
    """Cut the axis where the lowest hundredth of the rewards would squeeze the rest; say how many lie below."""
    low = min(float(rewards.quantile(0.02)), float(won.min()) if len(won) else float("inf"))
    span = float(rewards.max()) - low
    if span <= 0 or float(rewards.min()) >= low - 0.25 * span:
        return
    floor = low - 0.08 * span
    axes.set_ylim(bottom=floor)
    text = f"{int((rewards < floor).sum())} candidates lie below"
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "bottom", "fontsize": 8}
    axes.text(0.995, 0.02, text, color=colour("muted"), **place)


def _epochs(epochs: pd.DataFrame, phase: str) -> int:
    return int(epochs.loc[epochs["phase"] == phase, "epoch"].nunique())


def _curves(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split the rows of a phase into one curve per network and objective, the later of repeated epochs kept."""
    curves = []
    for (network, objective), part in rows.groupby(["network", "objective"], sort=False):
        ordered = part.drop_duplicates("epoch", keep="last").sort_values("epoch")
        curves.append((str(network) if network == objective else f"{network}, {objective}", ordered))
    return curves


def _accuracy_panel(axes: Axes, curves: Sequence[tuple[str, pd.DataFrame]], phase: str) -> None:
    for number, (label, part) in enumerate(curves):
        shade = colour(SERIES[number % len(SERIES)])
        tested = part[part["test_top1"].notna()]
        axes.plot(part["epoch"], part["train_top1"], color=shade, lw=0.9, alpha=0.45)
        axes.plot(tested["epoch"], tested["test_top1"], color=shade, ls=DASHES[number % len(DASHES)], label=label)
        moving = part[part["ema_top1"].notna()]
        if len(moving):
            axes.plot(
                moving["epoch"], moving["ema_top1"], color=shade, lw=1.1, ls=":", label=f"{label}, moving average"
            )
        averaged = part[part["averaged_top1"].notna()]
        if len(averaged):
            label = f"{label}, averaged"
            axes.plot(averaged["epoch"], averaged["averaged_top1"], "D", ms=4.6, color=shade, label=label)
    last = [float(part["test_top1"].dropna().iloc[-1]) for _, part in curves if part["test_top1"].notna().any()]
    values = pd.concat([part[name].dropna() for _, part in curves for name in ("test_top1", "train_top1")])
    if last and len(values) > 20:
        axes.set_ylim(bottom=max(float(values.min()), min(last) - 3.0 * (values.max() - min(last) + 2.0)))
    axes.set_title(f"{phase}: top-1 (%), test bold, train thin")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.03), borderaxespad=0, ncols=3, handlelength=2.8)


def _loss_panel(axes: Axes, curves: Sequence[tuple[str, pd.DataFrame]]) -> None:
    distilled = any((part["loss_distillation"] > 0).any() for _, part in curves)
    for number, (_, part) in enumerate(curves):
        shade = colour(SERIES[number % len(SERIES)])
        axes.plot(part["epoch"], part["loss"], color=shade, ls=DASHES[number % len(DASHES)])
        if (part["loss_distillation"] > 0).any():
            axes.plot(part["epoch"], part["loss_distillation"], color=shade, lw=0.9, alpha=0.45)
        on_embeddings = part[["loss_contrastive", "loss_views", "loss_regression"]].sum(axis=1)
        if (on_embeddings != 0).any():
            axes.plot(part["epoch"], on_embeddings, color=shade, lw=0.9, alpha=0.7, ls=":", label="on embeddings")
    embedded = bool(axes.get_legend_handles_labels()[0])
    remarks = ", distillation thin" * distilled + ", on embeddings dotted" * embedded
    axes.set_title("training loss (nats per image)" + remarks)
    lowest = min(float(line.get_ydata().min()) for line in axes.get_lines())  # type: ignore[union-attr]
    axes.set_ylim(bottom=min(0.0, 1.05 * lowest))


def _count_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
