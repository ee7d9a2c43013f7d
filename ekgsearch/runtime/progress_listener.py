"""Progress and log of a run, as listeners write them."""

import logging
import threading

from ekgsearch.runtime.listener import Advanced, Event, PhaseBegun, PhaseCommitted
from ekgsearch.runtime.progress import Progress


class ProgressListener:
    """Shows each piece of work as a bar or as log lines (`Progress`), from its first event to its end."""

    def __init__(self, log: logging.Logger) -> None:
        """Show nothing yet.

        Args:
            log: logger of the lines.
        """
        self._log = log
        self._open: dict[str, Progress] = {}
        self._lock = threading.Lock()  # events come from several threads

    def hear(self, event: Event) -> None:
        """Show how far a piece of work is; other events are not shown."""
        if not isinstance(event, Advanced):
            return
        with self._lock:
            progress = self._open.get(event.label)
            if progress is None:
                progress = self._open[event.label] = Progress(event.label, event.total, event.unit, self._log)
            progress.advance(event.done, **event.shown)
            if event.is_end:
                self._open.pop(event.label).close()

    def stop_reason(self) -> str:
        """Nothing that is shown stops a run."""
        return ""


class LogListener:
    """Logs which phases begin and end, with their keys."""

    def __init__(self, log: logging.Logger) -> None:
        """Log nothing yet.

        Args:
            log: logger of the lines.
        """
        self._log = log

    def hear(self, event: Event) -> None:
        """Log a phase; other events are not logged."""
        match event:
            case PhaseBegun():
                self._log.info("phase %s begins, key %s...", event.phase, event.key[:16])
            case PhaseCommitted():
                self._log.info("phase %s is committed, computed by %s", event.phase, event.producer)

    def stop_reason(self) -> str:
        """Nothing that is logged stops a run."""
        return ""
