"""Published results of the same data set and architecture, to see a run beside the literature."""

import math
from importlib.resources import files

import pandas as pd

from ekgsearch.rows.run import SummaryRow, partial_summary

UNPRUNED = "unpruned baseline"
"""The `method` of rows that give the accuracy of a network before anything is removed."""


def published_results() -> pd.DataFrame:
    """Return every published result that ships with the package.

    Columns: dataset, architecture, method, top1 (percent), top1_diff (percentage points to the paper's own unpruned
    network), top5 (percent), macs_reduction and params_reduction (0..1, by the paper's own counter), channels (outputs
    of all convolutions), macs and params (of the network, by that counter), gpu_hours, gpu_hours_estimated (estimated
    by the source, not measured), source, notes. Empty numbers are NaN. Variants of a method follow it after a comma.
    """
    with files("ekgsearch.report").joinpath("published_results.csv").open("r", encoding="utf-8") as file:
        table = pd.read_csv(file, dtype={"gpu_hours_estimated": "boolean"})
    return table.fillna({"notes": ""})


def published_rows() -> list[SummaryRow]:
    """Every published result as a row of the summary; what the papers do not give is NaN, and 0 for whole numbers."""
    return [
        partial_summary(
            method=row["method"],
            dataset=row["dataset"],
            architecture=row["architecture"],
            full_top1=row["top1"] - row["top1_diff"],
            final_top1=row["top1"],
            counter="the paper's own",
            kept_macs=_whole(row["macs"]),
            macs_reduction=row["macs_reduction"],
            kept_params=_whole(row["params"]),
            params_reduction=row["params_reduction"],
            device_hours=row["gpu_hours"],
            device="GPU" if row["gpu_hours"] == row["gpu_hours"] else "",
            kept_channels=_whole(row["channels"]),
            state="published",
            source="; ".join(filter(None, (row["source"], row["notes"]))),
        )
        for row in published_results().to_dict("records")
    ]


def _whole(value: float) -> int:
    return 0 if math.isnan(value) else round(value)


def published_for(dataset: str, architecture: str) -> pd.DataFrame:
    """Return the published results of one data set and architecture, ordered by the share of MACs removed.

    Names are compared without case and punctuation; the variants of an architecture for small images count as the
    architecture itself (`mobilenet_v2_cifar` is `mobilenet_v2`).
    """
    table = published_results()
    wanted = _plain(dataset), _plain(architecture)
    named = zip(table["dataset"], table["architecture"], strict=True)
    same = [(_plain(data), _plain(network)) == wanted for data, network in named]
    return table[same].sort_values(["macs_reduction", "top1"], kind="stable").reset_index(drop=True)


def published_near(
    dataset: str,
    architecture: str,
    macs_reduction: float,
    *,
    method: str = "",
    width: float = 0.06,
    most: int | None = None,
) -> pd.DataFrame:
    """Return published pruned networks to compare a run with, best first.

    Args:
        dataset: of the run.
        architecture: of the run.
        macs_reduction: share of the MACs that the run removed, 0..1.
        method: of the run; of its published networks the nearest are listed however far they are, with its variants.
        width: how far from the run's the share of the others may be.
        most: how many to list; the best of those that are not of the same method.
    """
    table = published_for(dataset, architecture)
    pruned = table[(table["method"] != UNPRUNED) & table["top1"].notna()]
    distance = (pruned["macs_reduction"] - macs_reduction).abs()
    same = pd.Series([_plain(name.partition(",")[0]) == _plain(method) for name in pruned["method"]], pruned.index)
    own = same.astype(bool) & (distance == distance[same.astype(bool)].min())
    others = pruned[(distance <= width) & ~own].sort_values("top1", ascending=False, kind="stable")
    if most is not None:
        others = others.head(max(0, most - int(own.sum())))
    chosen = pruned.loc[[*pruned.index[own], *others.index]]
    return chosen.sort_values("top1", ascending=False, kind="stable").reset_index(drop=True)


def _plain(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    for ending in ("2012", "1k", "ilsvrc"):
        if letters.startswith("imagenet"):
            letters = letters.removesuffix(ending)
    return letters if letters.startswith("cifar") else letters.removesuffix("cifar")
