"""Time and background threads, behind one protocol so that a model test can drive both."""

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time and what runs at the same time; a model test has one of its own."""

    def now(self) -> float:
        """Seconds that never jump."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Sleep until an event is set, at most for some seconds."""
        ...

    def start(self, action: Callable[[], None]) -> None:
        """Run something in the background, which does not keep the process alive."""
        ...


class MonotonicClock:
    """The clock of this machine, and daemon threads."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> None:
        """Sleep until an event is set, at most for some seconds."""
        event.wait(seconds)

    def start(self, action: Callable[[], None]) -> None:
        """Run something in a daemon thread."""
        threading.Thread(target=action, name="ekgsearch-beat", daemon=True).start()
