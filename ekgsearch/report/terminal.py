"""The result of a run as a few lines of plain text for the console."""

import textwrap
from collections.abc import Sequence

import pandas as pd

from ekgsearch.report import facts, headline, numbers
from ekgsearch.report.speed import speeds
from ekgsearch.report.tables import RunTables, rows_of
from ekgsearch.rows.run import SummaryRow
from ekgsearch.runtime.plain import plain_line

_WIDTH = 96
"""Columns of a paragraph."""


def summary_text(run: RunTables) -> str:
    """Return the end-of-run table: networks with accuracy and cost, latency, device-hours by phase.

    Plain text without colours and without a newline at its end, 80 to 100 columns wide; for a run that has not
    finished, what is known so far and what is missing.
    """
    blocks = [plain_line(headline.title(run) + (f"   [run {run.name}]" if run.summary else ""))]
    if run.summary is not None:
        warned = plain_line(f"  Warning: {run.summary.warnings}") if run.summary.warnings else ""
        blocks += [_networks(run.summary, run.baselines), warned, _latency(run.summary)]
    else:
        rows = [[tile.title, tile.before, "->" if tile.before else "", tile.value, tile.change] for tile in _tiles(run)]
        blocks.append(_aligned(rows, "<><><"))
    blocks += [_hours(run), textwrap.fill(facts.rivals_remark(run), _WIDTH), facts.missing_remark(run)]
    return "\n\n".join(block for block in blocks if block)


def audit_text(run: RunTables) -> str:
    """Return a line for every audited iteration and a sentence about all; empty where nothing was audited."""
    if run.audit.empty:
        return ""
    rows = [["  iteration", "taken", "kept", "exact tier", "kept", "", "regret", "shortlist shared"]]
    for row in rows_of(run.audit):
        taken = [str(row["iteration"]), row["channel_group"], str(row["num_kept"])]
        exact = [row["exact_channel_group"], str(row["exact_num_kept"]), "agrees" if row["agrees"] else "DIFFERS"]
        rows.append([*taken, *exact, f"{row['regret']:.3g}", numbers.share(row["shortlist_shared"])])
    return f"{_aligned(rows, '><><><>>', rule=True)}\n\n{facts.audit_remark(run)}"


def _tiles(run: RunTables) -> list[headline.Tile]:
    """Return the headline numbers of a run, without its device-hours, which have a table of their own."""
    return [tile for tile in headline.tiles(run) if not tile.title.startswith("Device-")]


def _networks(s: SummaryRow, baselines: pd.DataFrame) -> str:
    rows = [["network", "top-1 %", "diff", f"MACs ({s.counter})", "removed", "params", "removed"]]
    for line in headline.result_lines(s, baselines, num_published=3):
        label = f"Published: {line.label}" if line.kind == "published" else line.label
        accuracy = [numbers.top1(line.top1), numbers.signed(line.diff) if line.diff else ""]
        cost = [
            numbers.count(line.macs, like=s.full_macs),
            numbers.share(line.macs_reduction),
            numbers.count(line.params, like=s.full_params),
            numbers.share(line.params_reduction),
        ]
        rows.append([f"{'*' if line.kind == 'result' else ' '} {label}", *accuracy, *cost])
    rows[0][0] = f"  {rows[0][0]}"
    return _aligned(rows, "<>>>>>>", rule=True)


def _latency(s: SummaryRow) -> str:
    rows = []
    for speed in speeds(s):
        before, after = numbers.milliseconds(speed.full_ms), numbers.milliseconds(speed.slim_ms)
        rows.append([f"  Latency at batch {speed.batch}", before, "->", after, speed.text])
    return _aligned(rows, "<>>><")


def _hours(run: RunTables) -> str:
    table, unit = facts.hours_by_phase(run), facts.time_unit([run])
    if table.empty:
        return ""
    rows = [[f"  device-{unit.name}", "held", "idle", "attempts"]]
    for row in rows_of(table):
        attempts = f"{row['attempts']}" + (f" ({row['ended']})" if row["ended"] else "")
        rows.append([f"  {row['phase']}", unit.number(row["device_hours"]), unit.number(row["idle_hours"]), attempts])
    total, idle = table["device_hours"].sum(), table["idle_hours"].sum()
    rows.append(["  total", unit.number(total), unit.number(idle), str(int(table["attempts"].sum()))])
    return f"{_aligned(rows, '<>><', rule=True)}\n\n  idle: no process of the run was at work or waited for another"


def _aligned(rows: Sequence[Sequence[str]], sides: str, *, rule: bool = False) -> str:
    """Lay rows out in columns; `sides` holds < or > for each column; a rule may follow the first row."""
    if not rows:
        return ""
    rows = [[plain_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(sides))]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
    if rule:
        lines.insert(1, "  " + "-" * (max(len(line) for line in lines) - 2))
    return "\n".join(lines)
