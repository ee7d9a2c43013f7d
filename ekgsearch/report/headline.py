"""Numbers that a report leads with: before and after, baselines, published results, cost."""

import math
from dataclasses import dataclass

import pandas as pd

from ekgsearch.report import facts, numbers
from ekgsearch.report.published import published_near
from ekgsearch.report.speed import Speed, speeds
from ekgsearch.report.tables import RunTables, rows_of
from ekgsearch.rows.run import SummaryRow

_BASELINE = "plain cross-entropy, last epoch"


@dataclass(frozen=True)
class Tile:
    """One headline number.

    Attributes:
        title: what is measured.
        value: the number after the run.
        before: the number before it; empty where there is none.
        change: the difference; empty where there is none.
        remark: how it was measured, in a few words.
        good: whether the change is an improvement; None where that cannot be said.
    """

    title: str
    value: str
    before: str = ""
    change: str = ""
    remark: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class ResultLine:
    """One network in the table of results.

    Attributes:
        label: which network.
        remark: how it came about.
        top1: test accuracy, percent.
        diff: percentage points to the unpruned network of the same run or the same paper.
        macs, params: per image; NaN where the source gives none.
        macs_reduction, params_reduction: shares removed, 0..1.
        kind: run, result, option, baseline or published.
        channels: outputs of all convolutions; NaN where they are not known.
    """

    label: str
    remark: str
    top1: float
    diff: float
    macs: float
    macs_reduction: float
    params: float
    params_reduction: float
    kind: str
    channels: float = math.nan


def tiles(run: RunTables, unit: numbers.TimeUnit | None = None) -> list[Tile]:
    """Return the headline numbers of a run; of the search alone where the run has not finished.

    Args:
        run: the run.
        unit: of the device-hours; by default the one that suits the run.
    """
    unit = unit or facts.time_unit([run])
    return _final_tiles(run.summary, unit) if run.summary is not None else _search_tiles(run, unit)


def result_lines(summary: SummaryRow, baselines: pd.DataFrame, num_published: int = 6) -> list[ResultLine]:
    """Return the networks that a reader compares: before, after, baselines, published results of like cost.

    Args:
        summary: the result of the run.
        baselines: rows of its table of baselines.
        num_published: how many published results to list, best first.
    """
    s, nan = summary, float("nan")
    full_channels, kept_channels = s.full_channels or nan, s.kept_channels or nan
    cost: tuple[float, float, float, float]
    before = s.full_macs, 0.0, s.full_params, 0.0
    lines = [ResultLine("Unpruned network", "before", s.full_top1, 0.0, *before, "run", full_channels)]
    for label, remark, top1, kind in (
        ("Sub-network as searched", "no fine-tuning", s.searched_top1, "run"),
        ("Sub-network, recalibrated", "running statistics recomputed", s.recalibrated_top1, "run"),
        (*_result_label(s), s.final_top1, "result"),
        ("Slim network, best epoch", "selected on the test set", s.best_top1, "run"),
        ("Slim network, moving average", "of the weights, last epoch", s.ema_top1, "option"),
        ("Slim network, averaged", "mean of the weights after the last epochs", s.averaged_top1, "option"),
        ("Baseline: same widths", _BASELINE, s.plain_top1, "baseline"),
        ("Baseline: uniform width", "equal cost, plain cross-entropy", s.uniform_top1, "baseline"),
    ):
        is_in_table = label.endswith("uniform width") and "uniform" in set(baselines["network"])
        if (kind == "result" or numbers.known(top1)) and not is_in_table:
            is_uniform = label.endswith("uniform width")
            params = (nan, nan) if is_uniform else (s.kept_params, s.params_reduction)
            cost = s.kept_macs, s.macs_reduction, *params
            channels = nan if is_uniform else kept_channels
            lines.append(ResultLine(label, remark, top1, top1 - s.full_top1, *cost, kind, channels))
    for row in rows_of(baselines[baselines["network"] != "plain"]):
        is_same = row["network"] == "scratch"
        label = f"Baseline: {'same widths, fresh weights' if is_same else facts.baseline_name(row)}"
        accuracy = row["top1"], row["top1"] - s.full_top1
        cost = row["kept_macs"], row["macs_reduction"], row["kept_params"], row["params_reduction"]
        channels = kept_channels if is_same else nan
        lines.append(ResultLine(label, _BASELINE, *accuracy, *cost, "baseline", channels))
    near = published_near(s.dataset, s.architecture, s.macs_reduction, method=s.method, most=num_published)
    for row in rows_of(near):
        accuracy = row["top1"], row["top1_diff"]
        cost = row["macs"], row["macs_reduction"], row["params"], row["params_reduction"]
        lines.append(ResultLine(row["method"], row["source"], *accuracy, *cost, "published", row["channels"]))
    return lines


def title(run: RunTables) -> str:
    """Name a run by what it did: architecture, data set and the share of MACs removed."""
    s = run.summary
    return f"{s.architecture} on {s.dataset}, {numbers.share(s.macs_reduction)} of MACs removed" if s else run.name


def _final_tiles(s: SummaryRow, unit: numbers.TimeUnit) -> list[Tile]:
    diff = s.final_top1 - s.full_top1
    made = [
        Tile(
            "Top-1 accuracy",
            f"{numbers.top1(s.final_top1)} %",
            f"{numbers.top1(s.full_top1)} %",
            f"{numbers.signed(diff)} points",
            "test set, last epoch" if facts.is_fine_tuned(s) else "test set, no fine-tuning",
            diff >= 0,
        ),
        _cost_tile("MACs per image", s.full_macs, s.kept_macs, s.macs_reduction, f"counted as {s.counter}"),
        _cost_tile("Parameters", s.full_params, s.kept_params, s.params_reduction, f"counted as {s.counter}"),
        *(_latency_tile(speed, s.device) for speed in speeds(s)),
        Tile(f"Device-{unit.name}", unit.number(s.device_hours), remark=f"all phases and attempts, {s.device}"),
    ]
    return [tile for tile in made if tile.value != numbers.NONE]


def _search_tiles(run: RunTables, unit: numbers.TimeUnit) -> list[Tile]:
    made = []
    if not run.iterations.empty:
        first, last = run.iterations.iloc[0], run.iterations.iloc[-1]
        diff = float(last["search_top1"] - first["search_top1"])
        before, after = (f"{numbers.top1(row['search_top1'])} %" for row in (first, last))
        remark = "before fine-tuning, batch statistics"
        made.append(Tile("Top-1, search subset", after, before, f"{numbers.signed(diff)} points", remark, diff >= 0))
        for label, name in (("MACs per image", "macs"), ("Parameters", "params")):
            full, kept = float(first[f"kept_{name}"]), float(last[f"kept_{name}"])
            made.append(_cost_tile(label, full, kept, float(last[f"{name}_reduction"]), "so far"))
        made.append(Tile("Search iterations", str(int(last["iteration"])), remark="committed so far"))
    if not run.device_hours.empty:
        held = unit.number(run.device_hours["device_hours"].sum())
        made.append(Tile(f"Device-{unit.name}", held, remark="so far"))
    return made


def _cost_tile(label: str, full: float, kept: float, reduction: float, remark: str) -> Tile:
    change = f"{numbers.signed(-100 * reduction, 1)} %"
    return Tile(label, numbers.count(kept, like=full), numbers.count(full), change, remark, reduction >= 0)


def _latency_tile(speed: Speed, device: str) -> Tile:
    before, after = numbers.milliseconds(speed.full_ms), numbers.milliseconds(speed.slim_ms)
    good = speed.ratio >= 1 if speed.is_told else None
    return Tile(f"Latency, batch {speed.batch}", after, before, speed.text, f"median, {device}", good)


def _result_label(s: SummaryRow) -> tuple[str, str]:
    if facts.is_fine_tuned(s):
        return "Slim network, fine-tuned", f"{s.objective}, last epoch"
    return "Slim network, not fine-tuned", "finetune.epochs is 0"
