"""Log lines and progress with an estimate of its end, as a person sees them while a run goes on."""

import contextlib
import logging
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from ekgsearch.errors import StorageError
from ekgsearch.runtime.plain import plain_line, plain_text

LOG_FILE = "log.txt"
"""Name of the log in a run directory."""

_LINE_SECONDS = 5.0
_DRAW_SECONDS = 0.1
_BAR_WIDTH = 24
_CLEAR_LINE = "\r\x1b[K"
_ROOT = "ekgsearch"


class _Plain(logging.Formatter):
    """Formats a record as one line, and its traceback as indented ones, so that no name from outside forges a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (name of the standard library)
        """Format the line of a record."""
        return plain_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (name of the standard library)
        """Format the traceback of a record."""
        return textwrap.indent(plain_text(super().formatException(ei)), "  ")


class _Console(logging.StreamHandler[TextIO]):
    """Writes to the terminal's current standard error, over a bar that may stand there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; lines of progress are left out where a bar shows them."""
        self.stream = sys.stderr
        if self.stream.isatty():
            if getattr(record, "is_interim_progress", False):
                return
            self.stream.write(_CLEAR_LINE)
        super().emit(record)


class _LogFile(logging.FileHandler):
    """Extends the log file of a run; a disk that refuses is told once and does not stop the run."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (name of the standard library)
        """Tell the terminal once that the log is incomplete."""
        if not self._has_failed:
            self._has_failed = True
            text = f"cannot write {self.baseFilename}: {sys.exception()}; the log is incomplete"
            sys.stderr.write(f"{plain_line(text)}\n")

    def close(self) -> None:
        """Close the file; what a full disk still refuses was told already."""
        with contextlib.suppress(OSError):
            super().close()


def configure_logging(run_dir: Path | None, verbose: bool = False, *, console: bool = True) -> None:
    """Send the log of this package to standard error and to the log file of a run; call it once per process.

    A later call replaces what an earlier one set up. Texts are made plain in both places (`plain_line`).

    Args:
        run_dir: run directory, in which ``log.txt`` is extended; None for the console alone.
        verbose: whether details (level DEBUG) are shown.
        console: whether standard error gets it.

    Raises:
        StorageError: the log file cannot be opened.
    """
    logger = logging.getLogger(_ROOT)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    if console:
        shown = _Console(sys.stderr)
        shown.setFormatter(_Plain("%(message)s" if not verbose else "%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(shown)
    if run_dir is None:
        return
    try:
        file = _LogFile(run_dir / LOG_FILE, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(
            f"cannot open {run_dir / LOG_FILE}: {error.strerror}; make the run directory writable"
        ) from error
    file.setFormatter(_Plain("%(asctime)s %(levelname)-7s %(name)s  %(message)s"))
    logger.addHandler(file)


@contextlib.contextmanager
def logging_to(run_dir: Path, verbose: bool = False, *, console: bool = True) -> Iterator[None]:
    """Configure logging for a block, see `configure_logging`; afterwards it is as before.

    Args:
        run_dir: run directory, in which ``log.txt`` is extended.
        verbose: whether details (level DEBUG) are shown.
        console: whether standard error gets it.

    Raises:
        StorageError: the log file cannot be opened.
    """
    logger = logging.getLogger(_ROOT)
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    for handler in handlers:
        logger.removeHandler(handler)
    try:
        configure_logging(run_dir, verbose, console=console)
        yield
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class Progress:
    """Shows how far a piece of work is: a bar on a terminal, else a log line at most every 5 seconds and at the end.

    Use it in a ``with`` statement, or call `close`.
    """

    def __init__(self, label: str, total: int, unit: str, log: logging.Logger) -> None:
        """Start the clock.

        Args:
            label: what is done, such as the phase.
            total: units of work in all; 0 where unknown.
            unit: one unit in the plural, such as ``images``.
            log: logger of the calling module.
        """
        self._label, self._total, self._unit, self._log = label, total, unit, log
        self._done = 0
        self._metrics: dict[str, float | int | str] = {}
        self._start = self._last_line = time.monotonic()
        self._last_draw = 0.0
        self._is_open = True

    def advance(self, n: int = 1, **metrics: float | int | str) -> None:
        """Count finished work.

        Args:
            n: units finished since the last call.
            **metrics: what to show beside, such as ``loss=0.3``; a later value replaces an earlier one.
        """
        self._done += n
        self._metrics.update(metrics)
        now = time.monotonic()
        if now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._log.info("%s", self.line(), extra={"is_interim_progress": True})
        if now - self._last_draw >= _DRAW_SECONDS and sys.stderr.isatty():
            self._last_draw = now
            sys.stderr.write(_CLEAR_LINE + plain_line(f"{self._bar()} {self.line()}"))
            sys.stderr.flush()

    def line(self) -> str:
        """Label, done/total, rate, elapsed time, estimated time to the end and metrics, in fixed order."""
        elapsed = time.monotonic() - self._start
        rate = self._done / elapsed if elapsed > 0 else 0.0
        shown = partial(_number, like=self._total or self._done)
        parts = [self._label, f"{shown(self._done)}/{shown(self._total) if self._total else '?'} {self._unit}"]
        parts.append(f"{shown(rate)} {self._unit}/s")
        parts.append(duration(elapsed))
        if self._is_open and self._total and rate > 0:
            parts.append(f"ETA {duration(max(self._total - self._done, 0) / rate)}")
        parts += [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._metrics.items()
        ]
        return "  ".join(parts)

    def _bar(self) -> str:
        filled = min(_BAR_WIDTH * self._done // self._total, _BAR_WIDTH) if self._total else 0
        return "█" * filled + "░" * (_BAR_WIDTH - filled)

    def close(self) -> None:
        """Write the last line; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._log.info("%s", self.line())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(value: float, like: int) -> str:
    """Format a count or a rate, in millions where the work is counted in them."""
    if like >= 1_000_000:
        return f"{value / 1_000_000:.3f} M"
    return str(value) if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write a duration as a clock does.

    Args:
        seconds: duration, seconds, at least 0.

    Returns:
        ``m:ss``, or ``h:mm:ss`` from an hour on.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
