"""The figure of a study of random sub-networks: what foretells the loss after fine-tuning."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ekgsearch.report.style import colour, figure_style, new_figure, to_png
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.tables import read_table

CONDITIONS = {
    "eigenvalue_ratio": ("eigenvalue_ratio", "condition number, |lowest / highest eigenvalue|"),
    "relative": ("relative_condition", "relative condition number"),
}
"""Column and axis label of each condition number."""


def pearson(first: pd.Series, second: pd.Series) -> float:
    """Pearson's correlation; NaN for fewer than 3 rows, a constant column, or a number that is not finite."""
    x, y = first.to_numpy(dtype=float), second.to_numpy(dtype=float)
    if len(x) < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def correlations(rows: pd.DataFrame, condition: str) -> tuple[float, float]:
    """Correlations of the potential loss with the validation loss and with a condition number."""
    column = CONDITIONS[condition][0]
    potential = rows["potential_loss"]
    return pearson(rows["validation_loss"], potential), pearson(rows[column], potential)


def plot_study(rows: pd.DataFrame, condition: str) -> Figure:
    """Draw the potential loss over the validation loss and over a condition number, with both correlations."""
    column, label = CONDITIONS[condition]
    with figure_style():
        figure = new_figure(10.0, 4.1)
        first, second = figure.subplots(1, 2, sharey=True)
        by_loss, by_condition = correlations(rows, condition)
        _scatter(first, rows, "validation_loss", "validation loss before fine-tuning, nats per image", by_loss)
        _scatter(second, rows, column, f"{label}, before fine-tuning", by_condition)
        first.set_ylabel("potential loss: test loss after fine-tuning")
        handles, names = first.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def write_study(table: Path, condition: str) -> tuple[Path, str]:
    """Write the figure of a study beside its table.

    Returns:
        The PNG file, and a sentence with both correlations.

    Raises:
        StorageError: the table is missing or damaged.
    """
    rows = read_table(table)
    path = table.parent.parent / "plots" / "study.png"
    make_folder(path.parent)
    write_atomically(path, to_png(plot_study(rows, condition)))
    by_loss, by_condition = correlations(rows, condition)
    text = (
        f"{len(rows)} random sub-networks: Pearson correlation of the potential loss with the validation loss "
        f"{by_loss:.4f}, with the condition number ({condition}) {by_condition:.4f}; published 0.3228 and 0.7337"
    )
    return path, text


def _scatter(axes: Axes, rows: pd.DataFrame, column: str, label: str, correlation: float) -> None:
    for criterion, marker, shade in (("random", "o", "blue"), ("l1", "s", "orange")):
        part = rows[rows["criterion"] == criterion]
        axes.scatter(part[column], part["potential_loss"], s=22, marker=marker, color=colour(shade), label=criterion)
    axes.set_xlabel(label)
    axes.set_title(f"Pearson's r = {correlation:.3f}")
