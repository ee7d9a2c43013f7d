"""The tables of a run by name, and the meaning of their columns."""

from collections.abc import Mapping
from dataclasses import fields

from ekgsearch.rows.run import DeviceHoursRow, LatencyRow, SummaryRow
from ekgsearch.rows.search import AuditRow, CandidateRow, IterationRow, SubnetworkRow
from ekgsearch.rows.training import BaselineRow, EpochRow, StageRow

TABLES: dict[str, type] = {
    "summary": SummaryRow,
    "iterations": IterationRow,
    "candidates": CandidateRow,
    "audit": AuditRow,
    "baselines": BaselineRow,
    "stages": StageRow,
    "subnetworks": SubnetworkRow,
    "epochs": EpochRow,
    "device_hours": DeviceHoursRow,
    "latencies": LatencyRow,
}
"""Row type of every table of a run, by file name without ending."""


def table_columns(tables: Mapping[str, type] = TABLES) -> dict[str, dict[str, dict[str, str]]]:
    """Type and description of every column of every table.

    Args:
        tables: row type by name; by default the tables of a run.
    """
    return {
        table: {
            item.name: {"type": getattr(item.type, "__name__", str(item.type)), **item.metadata}
            for item in fields(row_type)
        }
        for table, row_type in tables.items()
    }
