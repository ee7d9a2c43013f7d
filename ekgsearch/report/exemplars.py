"""Tables and figures of EPruner's exemplars over beta."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ekgsearch.report.style import DASHES, SERIES, colour, figure_style, new_figure
from ekgsearch.rows.column import column

FINE_RANGE = (0.7, 0.8)
"""Betas that the second curve shows."""


@dataclass(frozen=True, slots=True)
class ExemplarRow:
    """One layer of one network at one beta."""

    network: str = column("weights of the network")
    beta: float = column("beta of EPruner, 0..1")
    layer: int = column("place of the layer among those that are cut, from 0")
    channel_group: str = column("channel group that the layer makes")
    size: int = column("filters of the layer")
    num_kept: int = column("exemplars, the filters that stay")


@dataclass(frozen=True, slots=True)
class ReductionRow:
    """One network at one beta."""

    network: str = column("weights of the network")
    beta: float = column("beta of EPruner, 0..1")
    kept_macs: int = column("multiply-accumulates per image (counter thop_old)")
    macs_reduction: float = column("share of the unpruned multiply-accumulates removed, 0..1")
    kept_params: int = column("parameters (counter thop_old)")
    params_reduction: float = column("share of the unpruned parameters removed, 0..1")


def plot_exemplars(rows: pd.DataFrame) -> Figure:
    """Draw the share of filters that each layer keeps, a picture for each network, a row for each beta."""
    networks = list(dict.fromkeys(rows["network"]))
    with figure_style():
        figure = new_figure(10.0, 1.0 + 2.1 * len(networks))
        for axes, network in zip(figure.subplots(len(networks), 1, squeeze=False)[:, 0], networks, strict=True):
            part = rows[rows["network"] == network]
            shares = part.assign(share=part["num_kept"] / part["size"])
            table = shares.pivot_table(index="beta", columns="layer", values="share").sort_index()
            image = axes.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            axes.set_yticks(range(len(table)), [f"{beta:g}" for beta in table.index])
            axes.set_title(network)
            axes.set_ylabel("beta")
            axes.grid(visible=False)
            figure.colorbar(image, ax=axes, label="filters kept, share")
        axes.set_xlabel("layer, in the order of the network")
    return figure


def plot_reduction(rows: pd.DataFrame) -> Figure:
    """Draw the share of the operations that goes over beta, over all betas and over those of `FINE_RANGE`."""
    low, high = FINE_RANGE
    with figure_style():
        figure = new_figure(10.0, 4.1)
        first, second = figure.subplots(1, 2, sharey=True)
        _curves(first, rows)
        _curves(second, rows[rows["beta"].between(low, high)])
        first.set_ylabel("share of the MACs removed (thop_old)")
        handles, names = first.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _curves(axes: Axes, rows: pd.DataFrame) -> None:
    for number, (network, part) in enumerate(rows.groupby("network", sort=False)):
        ordered, place = part.sort_values("beta"), number % len(SERIES)
        axes.plot(
            ordered["beta"],
            ordered["macs_reduction"],
            label=str(network),
            color=colour(SERIES[place]),
            linestyle=DASHES[place],
        )
    axes.set_xlabel("beta")
