"""Events of a run, told to listeners, any of which can ask for a clean stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ekgsearch.errors import Stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegun:
    """A phase is about to be computed, or copied from a store.

    Attributes:
        phase: instance of the phase, such as `warmup` or `finetune-slim`.
        key: its identity.
    """

    phase: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCommitted:
    """A phase is in the journal.

    Attributes:
        phase: instance of the phase.
        key: its identity.
        producer: the run that computed it.
    """

    phase: str
    key: str
    producer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationMade:
    """A decision of a search is in the journal.

    Attributes:
        phase: instance of the phase.
        iteration: number of the decision; 0 is the unpruned network.
        group: channel group that was cut; empty for decision 0.
        loss: cross-entropy of the interim sub-network on the search subset, nats per image; None where it is not
            evaluated.
        macs: multiply-accumulates that it keeps.
        params: parameters that it keeps.
        reduction: share of the limited cost that is removed by now, 0..1.
    """

    phase: str
    iteration: int
    group: str
    loss: float | None
    macs: int
    params: int
    reduction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """A training has ended an epoch.

    Attributes:
        phase: instance of the phase.
        network: which network of the phase is trained.
        epoch: number of the epoch, from 1.
        metrics: its measurements by name; what was not measured is left out.
    """

    phase: str
    network: str
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """Some units of a piece of work are done.

    Attributes:
        label: what is done, such as `search`; pieces of work that go on at the same time have different labels.
        done: units done since the last event of this label; 0 announces the work, or new values to show.
        total: units of work in all; 0 where unknown.
        unit: one unit in the plural, such as `images`.
        shown: what to show next to them, such as the loss; a later value replaces an earlier one.
        is_end: whether the work is over.
    """

    label: str
    done: int
    total: int
    unit: str
    shown: Mapping[str, float | int | str] = field(default_factory=dict)
    is_end: bool = False


Event = PhaseBegun | PhaseCommitted | IterationMade | EpochEnded | Advanced


class Listener(Protocol):
    """Hears what happens in a run; called in the process that runs the job, from several threads."""

    def hear(self, event: Event) -> None:
        """Take note of an event; returns quickly, the run waits for it."""
        ...

    def stop_reason(self) -> str:
        """Why the run is to stop; empty to go on. Asked at least every second."""
        ...


class Listeners:
    """Several listeners as one."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = tuple(listeners)

    def hear(self, event: Event) -> None:
        """Tell all of them."""
        for listener in self._listeners:
            listener.hear(event)

    def stop_reason(self) -> str:
        """The first reason that one of them has."""
        return next((reason for listener in self._listeners if (reason := listener.stop_reason())), "")


SILENT = Listeners()
"""Hears nothing and never asks to stop."""


def stopped(reason: str) -> Stopped:
    """The clean stop that a listener has asked for."""
    return Stopped(f"{reason}: what is committed is kept, the same command continues")


def stop_where_asked(listener: Listener) -> None:
    """Raise where a listener has a reason to stop.

    Raises:
        Stopped: it has.
    """
    if reason := listener.stop_reason():
        raise stopped(reason)
