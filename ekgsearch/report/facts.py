"""Facts in the tables of a run, as sentences and small sums."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ekgsearch.records import PhaseKind
from ekgsearch.report import numbers
from ekgsearch.report.speed import speeds
from ekgsearch.report.tables import RunTables, rows_of
from ekgsearch.rows.run import SummaryRow

_ABSENT = {
    "iterations": "search iterations",
    "candidates": "candidates",
    "subnetworks": "interim sub-networks",
    "epochs": "training epochs",
    "device_hours": "device-hours",
    "summary": "summary (it is written when a run finishes)",
}

_LIKE_COST = 0.02
"""Share of the MACs that a baseline may keep more than the slim network and still stand for its cost."""


def fine_tuning(s: SummaryRow) -> str:
    """Name how the slim network was fine-tuned: by its objective, or not at all."""
    return s.objective if is_fine_tuned(s) else "no fine-tuning"


def is_fine_tuned(s: SummaryRow) -> bool:
    """Tell whether the slim network was trained for at least one epoch; tables of older versions do not know."""
    return s.finetune_epochs != 0


def verdict(s: SummaryRow, baselines: pd.DataFrame) -> str:
    """Say in words what the run achieved, against the unpruned network and the best of the baselines.

    Args:
        s: the result of the run.
        baselines: rows of its table of baselines.
    """
    diff = s.final_top1 - s.full_top1
    sign = "more" if diff >= 0 else "less"
    tuned = "" if is_fine_tuned(s) else ", without any fine-tuning,"
    text = (
        f"The slim network needs {numbers.share(1 - s.macs_reduction)} of the MACs and{tuned} reaches "
        f"{numbers.top1(s.final_top1)} % top-1, {abs(diff):.2f} points {sign} than the unpruned network."
    )
    known = [("plain fine-tuning of the same widths", s.plain_top1)] if numbers.known(s.plain_top1) else []
    known += best_rival(s, baselines)
    told = " and ".join(f"{name} reaches {numbers.top1(value)} %" for name, value in known)
    return f"{text} At the same cost, {told}." if told else text


def best_rival(s: SummaryRow, baselines: pd.DataFrame) -> list[tuple[str, float]]:
    """Name and accuracy of the best network that another method has cut, in percent; empty where there is none.

    Args:
        s: the result of the run.
        baselines: rows of its table of baselines.
    """
    is_as_small = baselines["macs_reduction"] > s.macs_reduction - _LIKE_COST
    cut = baselines[~baselines["network"].isin(("plain", "scratch")) & baselines["top1"].notna() & is_as_small]
    if cut.empty:
        return [("a uniform-width network", s.uniform_top1)] if numbers.known(s.uniform_top1) else []
    best = rows_of(cut.nlargest(1, "top1"))[0]
    name = f"{'the best of ' + str(len(cut)) + ' baselines, ' if len(cut) > 1 else ''}{baseline_name(best)}"
    return [(name, best["top1"])]


def baseline_name(row: Mapping[str, Any]) -> str:
    """How a baseline was cut, in words: `l1 over private channel groups in 4 stages`."""
    stages = f" in {row['stages']} stages" if row["stages"] > 1 else ""
    ranked = " per layer" if "per-layer" in row["network"] else ""
    return f"{row['method']}{ranked} over {row['groups']} channel groups{stages}"


def rivals_remark(run: RunTables) -> str:
    """Say which of the weakest rivals the slim network was not compared with; empty if it was with both."""
    if run.summary is None or not is_fine_tuned(run.summary):
        return ""
    known = {*run.baselines["method"], run.summary.method}
    known |= {"uniform"} if numbers.known(run.summary.uniform_top1) else set()
    missing = [name for name in ("uniform", "random") if name not in known]
    if not missing:
        return ""
    return (
        f"Not compared with a network cut by {' or '.join(missing)} to the same cost (finetune.baselines), so what the "
        "choice of channels is worth cannot be told from this run."
    )


def speed_remark(s: SummaryRow) -> str:
    """Set the factor by which MACs fell next to the measured speed; empty if nothing was measured."""
    measured = speeds(s)
    if not measured:
        return ""
    parts = [f"at batch {speed.batch} {speed.text}" for speed in measured]
    spread = " (quartiles of the ratio in brackets)" if any(speed.has_spread for speed in measured) else ""
    return f"{numbers.times(s.full_macs / s.kept_macs)} fewer MACs, measured on {s.device}{spread}: {'; '.join(parts)}."


def missing_remark(run: RunTables) -> str:
    """Say which tables of the run have no rows; empty if all have."""
    if not run.missing:
        return ""
    return f"Not recorded: {', '.join(_ABSENT[name] for name in run.missing)}."


def search_remark(run: RunTables) -> str:
    """Count iterations, candidates and teachers."""
    if run.iterations.empty:
        return ""
    tried = int(run.iterations["num_candidates"].sum())
    text = f"{int(run.iterations['iteration'].max())} iterations, {tried:,} candidates evaluated."
    rows = run.subnetworks
    chosen = rows[rows["teacher"] >= 0].sort_values("teacher")["iteration"].unique()
    if len(chosen):
        text += f" Teachers of the memory bank, lowest loss first: the sub-networks after iterations {_listed(chosen)}."
    return text


def audit_remark(run: RunTables) -> str:
    """Say how far the search agreed with the exact tier where it was audited; empty if it was not."""
    rows = run.audit
    if rows.empty:
        return ""
    regret = rows["regret"]
    relative = (regret / rows["exact_score"].abs()).mean()
    return (
        f"Audit: {int(rows['agrees'].sum())} of {len(rows)} decisions ({numbers.share(rows['agrees'].mean())}) are "
        f"those of the exact tier; reward regret {regret.mean():.2g} nats on average ({100 * relative:.2g} % of the "
        f"reward), at worst {regret.max():.2g}; {numbers.share(rows['shortlist_shared'].mean())} of the shortlists "
        "in common."
    )


def width_remark(run: RunTables) -> str:
    """Count the channel groups that were cut and the widths that suit the hardware (multiples of 8)."""
    last = last_subnetwork(run)
    if last.empty:
        return ""
    cut = int((last["num_kept"] < last["size"]).sum())
    kept, size = int(last["num_kept"].sum()), int(last["size"].sum())
    eights = int((last["num_kept"] % 8 == 0).sum())
    return (
        f"{cut} of {len(last)} channel groups were cut; {kept:,} of {size:,} channels are kept. "
        f"{eights} widths are multiples of 8."
    )


def last_subnetwork(run: RunTables) -> pd.DataFrame:
    """Return the rows of the sub-network after the last search iteration, in the order of the channel groups."""
    rows = run.subnetworks
    last: pd.DataFrame = rows[rows["iteration"] == rows["iteration"].max()]
    return last


def hours_by_phase(run: RunTables) -> pd.DataFrame:
    """Sum the device-hours of all attempts by phase, in the order of the phases.

    Columns: phase, attempts, ended (exit states other than finished, with their number), wall_hours, device_hours,
    busy_hours, idle_hours.
    """
    rows = []
    for phase in in_order(run.device_hours["phase"].unique()):
        part = run.device_hours[run.device_hours["phase"] == phase]
        states = part.loc[part["exit_state"] != "finished", "exit_state"].value_counts()
        rows.append(
            {
                "phase": phase,
                "attempts": len(part),
                "ended": ", ".join(f"{number} {state}" for state, number in states.items()),
                "wall_hours": part["wall_seconds"].sum() / 3600,
                "device_hours": part["device_hours"].sum(),
                "busy_hours": part["busy_seconds"].sum() / 3600,
                "idle_hours": part["idle_seconds"].sum() / 3600,
            }
        )
    columns = ["phase", "attempts", "ended", "wall_hours", "device_hours", "busy_hours", "idle_hours"]
    return pd.DataFrame(rows, columns=columns)


def time_unit(runs: Iterable[RunTables]) -> numbers.TimeUnit:
    """The unit for all device-hours and wall times of a page about these runs."""
    return numbers.TimeUnit.of(max((run.device_hours["device_hours"].sum() for run in runs), default=0.0))


def last_epochs(run: RunTables) -> pd.DataFrame:
    """Return the last epoch of every training, in the order of the phases: its losses by part and its accuracies.

    Columns: those of the table of epochs, and best_top1, the highest test accuracy of any of its epochs.
    """
    rows = []
    for phase in in_order(run.epochs["phase"].unique()):
        trainings = run.epochs[run.epochs["phase"] == phase].groupby(["network", "objective"], sort=False)
        for _, part in trainings:
            last = part.sort_values("epoch").iloc[-1].to_dict()
            last["skipped_steps"] = int(part.drop_duplicates("epoch", keep="last")["skipped_steps"].sum())
            rows.append(last | {"best_top1": part["test_top1"].max()})
    return pd.DataFrame(rows, columns=[*run.epochs.columns, "best_top1"])


def in_order(phases: Iterable[str]) -> list[str]:
    """Sort phases as a run goes through them; unknown ones last."""
    order = [phase.value for phase in PhaseKind]
    return sorted((str(phase) for phase in phases), key=lambda name: order.index(name) if name in order else len(order))


def over_seeds(summaries: Sequence[SummaryRow]) -> pd.DataFrame:
    """Average runs that differ in their seed alone, where there are at least two.

    Columns: kind, runs, top1, top1_deviation, diff, diff_deviation (percentage points), macs_reduction. Runs are of one
    kind when all their settings but the seeds agree and the shares of MACs removed lie within two percentage points; of
    older tables, which have no settings, method, objective, architecture, data set and counter are compared. The
    deviation is that of a sample.
    """
    kinds: list[tuple[str, list[SummaryRow]]] = []
    for s in sorted(summaries, key=lambda s: s.macs_reduction):
        name = f"{s.method} + {fine_tuning(s)}, {s.architecture} on {s.dataset}, {s.counter}"
        alike = [
            group
            for kind, group in kinds
            if kind == name
            and s.macs_reduction - group[0].macs_reduction <= 0.02
            and _without_seeds(s) == _without_seeds(group[0])
        ]
        if alike:
            alike[-1].append(s)
        else:
            kinds.append((name, [s]))
    rows = []
    for kind, group in kinds:
        if len({(s.seed, s.finetune_seed) for s in group}) > 1:
            top1 = pd.Series([s.final_top1 for s in group])
            diff = pd.Series([s.final_top1 - s.full_top1 for s in group])
            macs = sum(s.macs_reduction for s in group) / len(group)
            spread = top1.std(), diff.std()
            rows.append((kind, len(group), top1.mean(), spread[0], diff.mean(), spread[1], macs))
    columns = ["kind", "runs", "top1", "top1_deviation", "diff", "diff_deviation", "macs_reduction"]
    return pd.DataFrame(rows, columns=columns)


def _without_seeds(s: SummaryRow) -> dict[str, str]:
    own = ("seed", "finetune.seed", "output", "search_run", "phases.uri", "bank.uri")
    return {name: value for name, value in s.settings.items() if name not in own}


def _listed(values: Iterable[int]) -> str:
    words = [str(int(value)) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
