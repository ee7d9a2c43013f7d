"""Listeners that ask for a stop in the middle of something, and what is left of a Ray session after it."""

import threading
import time
from collections.abc import Callable

from ray._private.state import actors
from ray.util.placement_group import placement_group_table

from ekgsearch.runtime.listener import Event

STOP_SECONDS = 5.0
"""Time in which a stop takes effect."""


class Stopper:
    """Notes what it hears, and asks for a stop once an event, or a number of questions, has come.

    Attributes:
        events: what it heard, in order.
        num_asked: how often it was asked whether to stop.
        asked_at: when it first asked for the stop, by the monotonic clock; None before.
    """

    def __init__(self, when: Callable[[Event], bool] = lambda event: False, after_questions: int | None = None) -> None:
        self._when, self._after = when, after_questions
        self._lock = threading.Lock()
        self.events: list[Event] = []
        self.num_asked = 0
        self.asked_at: float | None = None

    def hear(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)
            if self._when(event):
                self.ask()

    def ask(self) -> None:
        """Ask for a stop from now on."""
        self.asked_at = self.asked_at or time.monotonic()

    def stop_reason(self) -> str:
        self.num_asked += 1
        if self._after is not None and self.num_asked > self._after:
            self.ask()
        return "" if self.asked_at is None else "the test is over"

    @property
    def seconds(self) -> float:
        """Time since it asked for the stop."""
        assert self.asked_at is not None, "it never asked for a stop"
        return time.monotonic() - self.asked_at


def living_actors() -> list[str]:
    """Classes of the actors that are not dead, without the one that Ray Train keeps for the whole session."""
    names = [actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"]
    return sorted(name for name in names if name != "_AutoscalingCoordinatorActor")


def placement_groups() -> list[str]:
    """States of the placement groups of the session that are not removed."""
    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


def require_nothing_left(seconds: float = 10.0) -> None:
    """See that, after a moment, no actor and no placement group is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (living_actors() or placement_groups()):
        time.sleep(0.1)
    assert (living_actors(), placement_groups()) == ([], [])
