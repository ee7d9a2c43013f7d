"""Device-hours of the trials of a sweep: what each added, and what sharing saved it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ekgsearch.records import PhaseKind
from ekgsearch.rows.run import DeviceHoursRow
from ekgsearch.runtime.ledger import SHARED


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Device-hours of one trial.

    Attributes:
        added: spent by the trial itself, in all its attempts.
        saved: spent by other trials of the sweep on what it took over from them.
    """

    added: float
    saved: float

    @property
    def alone(self) -> float:
        """What the trial would have cost without the others."""
        return self.added + self.saved


def hours_of(rows: Mapping[str, Sequence[DeviceHoursRow]], decisions: Mapping[str, int]) -> dict[str, Hours]:
    """Device-hours of every trial.

    A search that was taken over decision by decision counts by its number of decisions: a search to 30 % needs fewer of
    them than the one to 60 % that has made them.

    Args:
        rows: ledger of every trial, by name.
        decisions: decisions of the search of every trial, by name.
    """
    spent: dict[tuple[str, str], float] = {}
    for name, entries in rows.items():
        for row in entries:
            spent[name, row.instance] = spent.get((name, row.instance), 0.0) + row.device_hours

    def saved(name: str, row: DeviceHoursRow) -> float:
        whole = spent.get((row.producer, row.instance), 0.0)
        if row.phase != PhaseKind.SEARCH:
            return whole
        made = decisions.get(row.producer, 0)
        return whole * min(1.0, decisions.get(name, 0) / made) if made else whole

    return {
        name: Hours(
            added=sum(row.device_hours for row in entries),
            saved=sum(saved(name, row) for row in entries if row.exit_state == SHARED),
        )
        for name, entries in rows.items()
    }
