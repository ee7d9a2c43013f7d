"""Events and the stop of a distributed training, in files of its folder.

Rank 0 appends events as JSON lines, the driver reads them while it waits. Every attempt at a training has a file of its
own, so that what a process of an earlier attempt still writes is not read.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from ekgsearch.runtime.listener import Advanced, EpochEnded, Event, Listener
from ekgsearch.storage.files import write_atomically, write_error

STOP_FILE = "stop.txt"
"""Reason for which the training is to stop; written by the driver, looked for by every process."""

STOP_SECONDS = 0.5
"""Longest time for which a process does not look for it."""

EVENTS_FILE = "events-{attempt}.jsonl"

ADVANCED_SECONDS = 0.2
"""Shortest time between two lines that say how far the training is."""

Told = Advanced | EpochEnded
"""What a training process has to tell."""


class FileListener:
    """The listener of a training process: what it hears, the driver reads."""

    def __init__(self, folder: Path, attempt: int) -> None:
        """Tell nothing yet.

        Args:
            folder: of the training, the same for all processes and the driver.
            attempt: number of this attempt at the training, from 1.
        """
        self._stop = folder / STOP_FILE
        self._events = folder / EVENTS_FILE.format(attempt=attempt)
        self._waiting: Advanced | None = None
        self._written = self._looked = -1e9
        self._reason = ""

    def hear(self, event: Event) -> None:
        """Write an event; steps that follow each other closely become one.

        Raises:
            StorageError: the disk refuses.
        """
        if not isinstance(event, Told):
            return
        if isinstance(event, Advanced):
            before, self._waiting = self._waiting, None
            if before is not None:
                shown = {**before.shown, **event.shown}
                event = replace(event, done=before.done + event.done, shown=shown)
            if not event.is_end and time.monotonic() - self._written < ADVANCED_SECONDS:
                self._waiting = event
                return
            self._written = time.monotonic()
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._write(waiting)
        self._write(event)

    def stop_reason(self) -> str:
        """What the driver has written; empty to go on."""
        now = time.monotonic()
        if not self._reason and now - self._looked >= STOP_SECONDS:
            self._looked = now
            self._reason = self._stop.read_text(encoding="utf-8") if self._stop.exists() else ""
        return self._reason

    def _write(self, event: Told) -> None:
        line = json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n"
        try:
            with open(self._events, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise write_error(self._events, error, len(line)) from error


class EventReader:
    """The driver's end of the files: it passes on every event once, in order, also where epochs are done again.

    An attempt begins by telling all epochs that are kept; those that were told before are left out here. So no epoch is
    lost whose process died between keeping it and telling of it.
    """

    def __init__(self, folder: Path, listener: Listener, epochs_told: dict[str, int]) -> None:
        """Remove what an earlier driver has left.

        Args:
            folder: of the training.
            listener: told of the events.
            epochs_told: by network, the epochs that were kept before this driver began.
        """
        self._folder, self._listener = folder, listener
        self._told = dict(epochs_told)
        self._open: dict[str, Advanced] = {}
        self._offset = 0
        self.attempt = 0
        for path in folder.glob(EVENTS_FILE.format(attempt="*")):
            path.unlink()

    def begin(self) -> None:
        """Expect the events of another attempt; nobody has asked it to stop yet."""
        (self._folder / STOP_FILE).unlink(missing_ok=True)
        self.attempt += 1
        self._offset = 0

    def ask_to_stop(self, reason: str) -> None:
        """Let all processes know that they are to stop."""
        write_atomically(self._folder / STOP_FILE, reason.encode())

    def pass_on(self) -> None:
        """Tell the listener what has been written since the last time; a line that is being written waits."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._tell(_event(line))

    def end(self) -> None:
        """Pass on the rest of an attempt, and end the pieces of work that it has left open."""
        self.pass_on()
        for event in list(self._open.values()):
            self._tell(replace(event, done=0, shown={}, is_end=True))
        self._path.unlink(missing_ok=True)
        (self._folder / STOP_FILE).unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self._folder / EVENTS_FILE.format(attempt=self.attempt)

    def _tell(self, event: Told) -> None:
        if isinstance(event, EpochEnded):
            if event.epoch <= self._told.get(event.network, 0):
                return
            self._told[event.network] = event.epoch
        elif event.is_end:
            self._open.pop(event.label, None)
        else:
            self._open[event.label] = event
        self._listener.hear(event)


def _event(line: bytes) -> Told:
    values = json.loads(line)
    kind = values.pop("event")
    return EpochEnded(**values) if kind == EpochEnded.__name__ else Advanced(**values)
