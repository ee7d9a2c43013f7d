"""Signals that a command answers."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ekgsearch.runtime.ledger import INTERRUPTED_EXIT_CODE

log = logging.getLogger(__name__)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a block with exit status 75, so that what it holds is closed; the same command continues."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    log.warning("asked to stop (SIGTERM): what is committed is kept; the same command continues")
    raise SystemExit(INTERRUPTED_EXIT_CODE)
