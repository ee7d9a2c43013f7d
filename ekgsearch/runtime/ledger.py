"""Device-hours: the cost of every attempt at every phase, also of one that was killed."""

import dataclasses
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ekgsearch.errors import Stopped, StorageError
from ekgsearch.records import PhaseKind
from ekgsearch.rows.run import DeviceHoursRow
from ekgsearch.storage.files import make_folder, write_atomically
from ekgsearch.storage.sealed import read_sealed, sealed

INTERRUPTED_EXIT_CODE = 75
"""Exit status of a run that was asked to stop and can continue (EX_TEMPFAIL)."""

LEDGER = "ledger"
"""Folder of the ledger in a run directory."""

HEARTBEAT_SECONDS = 2.0
"""Longest time between two records of an open attempt; what a killed attempt may lose."""

_log = logging.getLogger(__name__)
_OPEN = "open"

SHARED = "shared"
"""State of a phase that another run has computed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """Content of one attempt's file; seconds are durations by the monotonic clock, never times of day."""

    run: str
    phase: str
    instance: str
    attempt: int
    device: str
    num_devices: int
    producer: str
    wall_seconds: float = 0.0
    busy_seconds: float = 0.0
    exit_state: str = _OPEN
    host: str
    process: int
    process_start: int


class Clock:
    """Measures one attempt: wall time since it was made, and the time in which devices worked.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._busy_seconds = 0.0
        self._spans: dict[int, tuple[float, int]] = {}
        self._num_spans = 0

    def busy(self, seconds: float) -> None:
        """Add work that was measured elsewhere, such as in a worker.

        Args:
            seconds: device seconds, summed over devices; not negative.

        Raises:
            ValueError: the number is negative or no number.
        """
        if not seconds >= 0:
            raise ValueError(f"busy seconds must be at least 0, found {seconds}")
        with self._lock:
            self._busy_seconds += seconds

    @contextmanager
    def working(self, devices: int = 1) -> Iterator[None]:
        """Count the time of a block as work.

        Args:
            devices: devices that work during the block.
        """
        with self._lock:
            key = self._num_spans
            self._num_spans += 1
            self._spans[key] = (time.monotonic(), devices)
        try:
            yield
        finally:
            with self._lock:
                start, devices = self._spans.pop(key)
                self._busy_seconds += (time.monotonic() - start) * devices

    def read(self) -> tuple[float, float]:
        """Wall seconds and busy device seconds up to now, blocks that are still open included."""
        with self._lock:
            now = time.monotonic()
            unfinished = sum((now - start) * devices for start, devices in self._spans.values())
            return now - self._start, self._busy_seconds + unfinished


class Ledger:
    """The attempts of one run, one small JSON file each.

    Made anew by every process that continues the run: attempts whose process has gone are then closed as ``died`` with
    what their last heartbeat recorded. An attempt of another host is taken for gone too, since only the driver that
    holds the run's journal makes a ledger; if it lives after all, its next heartbeat opens it again.
    """

    def __init__(self, folder: Path, run: str) -> None:
        """Open the ledger of a run.

        Args:
            folder: folder of the attempts' files, made where it is missing.
            run: name of the run.

        Raises:
            StorageError: the folder cannot be made or a file in it is damaged.
        """
        self._folder = folder
        self._run = run
        self._live: dict[tuple[str, int], tuple[_Attempt, Clock]] = {}
        make_folder(folder)
        for path in self._paths():
            attempt = _read(path)
            if attempt.exit_state == _OPEN and not _lives(attempt):
                _write(path, dataclasses.replace(attempt, exit_state="died"))

    @contextmanager
    def attempt(self, phase: PhaseKind, device: str, num_devices: int, *, instance: str = "") -> Iterator[Clock]:
        """Charge a block of work to a phase.

        The attempt is recorded at its start, every `HEARTBEAT_SECONDS` by a daemon thread, and at its end with the
        exit state: ``finished``, ``interrupted`` (KeyboardInterrupt, `Stopped`, SystemExit of status 75), ``failed``.

        Args:
            phase: phase of the run.
            device: kind of device held, such as ``cpu`` or ``NVIDIA H200``.
            num_devices: devices held for the whole attempt (CPU: cores), at least 1.
            instance: which phase of this kind it is; the kind itself where there is one.

        Yields:
            The clock that takes the busy seconds.

        Raises:
            StorageError: the attempt cannot be recorded.
            ValueError: no device is held.
        """
        if num_devices < 1:
            raise ValueError(f"an attempt holds at least 1 device, found {num_devices}")
        attempt, clock = self._next(phase, instance, device, num_devices), Clock()
        key = (attempt.phase, attempt.attempt)
        path = self._path(*key)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, attempt, clock, stop), name="ledger", daemon=True)
        exit_state = "failed"
        try:  # from before the first record on, so that an interruption at any moment is recorded as one
            _write(path, attempt)
            self._live[key] = (attempt, clock)
            beat.start()
            yield clock
            exit_state = "finished"
        except (KeyboardInterrupt, Stopped, GeneratorExit):  # GeneratorExit: interrupted before the block could begin
            exit_state = "interrupted"
            raise
        except SystemExit as error:
            exit_state = "interrupted" if error.code == INTERRUPTED_EXIT_CODE else "failed"
            raise
        finally:
            stop.set()
            if beat.ident is not None:
                beat.join()
            self._live.pop(key, None)
            if path.exists():
                self._end(path, _measured(attempt, clock, exit_state))

    def shared(self, phase: PhaseKind, instance: str, producer: str) -> None:
        """Record, once, that a phase was taken over from the run that computed it, and is charged to that one.

        Raises:
            StorageError: it cannot be recorded.
        """
        known = {(row.instance, row.producer) for row in self.rows() if row.exit_state == SHARED}
        if (instance, producer) in known:
            return
        attempt = dataclasses.replace(self._next(phase, instance, "", 0), producer=producer, exit_state=SHARED)
        _write(self._path(attempt.phase, attempt.attempt), attempt)

    def _next(self, phase: PhaseKind, instance: str, device: str, num_devices: int) -> _Attempt:
        """An attempt under the next free number; it is not recorded yet."""
        numbers = [_read(path).attempt for path in self._paths() if path.name.startswith(f"{PhaseKind(phase).value}-")]
        return _Attempt(
            run=self._run,
            phase=PhaseKind(phase).value,
            instance=instance or PhaseKind(phase).value,
            attempt=max(numbers, default=0) + 1,
            device=device,
            num_devices=num_devices,
            producer=self._run,
            host=socket.gethostname(),
            process=os.getpid(),
            process_start=_process_start(os.getpid()),
        )

    @staticmethod
    def _end(path: Path, attempt: _Attempt) -> None:
        """Record the end of an attempt; an error of the disk must not hide the error that ended the attempt."""
        try:
            _write(path, attempt)
        except StorageError:
            if attempt.exit_state == "finished":
                raise
            _log.warning("the end of attempt %s is not recorded", path, exc_info=True)

    def rows(self) -> list[DeviceHoursRow]:
        """All attempts of the run, in order of phase and number; open ones as measured by now.

        Raises:
            StorageError: a file is damaged.
        """
        attempts = []
        for path in self._paths():
            attempt = _read(path)
            live = self._live.get((attempt.phase, attempt.attempt))
            attempts.append(_measured(*live, _OPEN) if live else attempt)
        return _rows(attempts)

    def device_hours(self, phase: PhaseKind | None = None) -> float:
        """Device-hours of all attempts at one phase, or of the whole run.

        Args:
            phase: phase of the run; None for all of them.

        Raises:
            StorageError: a file is damaged.
        """
        return sum(row.device_hours for row in self.rows() if phase is None or row.phase == PhaseKind(phase).value)

    def _paths(self) -> list[Path]:
        return _paths(self._folder)

    def _path(self, phase: str, attempt: int) -> Path:
        return self._folder / f"{phase}-{attempt:04d}.json"


def read_ledger(folder: Path) -> list[DeviceHoursRow]:
    """All attempts of a run as they were recorded last, also while it is under way elsewhere; nothing is changed.

    Args:
        folder: folder of the attempts' files; without any where it is missing.

    Raises:
        StorageError: a file is damaged.
    """
    attempts = [_read(path) for path in _paths(folder)]
    return _rows(dataclasses.replace(one, exit_state="died") if _is_gone(one) else one for one in attempts)


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _rows(attempts: Iterable[_Attempt]) -> list[DeviceHoursRow]:
    """Attempts in order of phase and number."""
    order = {phase.value: index for index, phase in enumerate(PhaseKind)}
    return [_row(attempt) for attempt in sorted(attempts, key=lambda item: (order[item.phase], item.attempt))]


def _beat(path: Path, attempt: _Attempt, clock: Clock, stop: threading.Event) -> None:
    """Record an open attempt again and again until it ends."""
    has_warned = False
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            _write(path, _measured(attempt, clock, _OPEN))
        except StorageError as error:
            if not has_warned:
                _log.warning("device-hours are not recorded for now: %s", error)
            has_warned = True


def _measured(attempt: _Attempt, clock: Clock, exit_state: str) -> _Attempt:
    wall_seconds, busy_seconds = clock.read()
    return dataclasses.replace(attempt, wall_seconds=wall_seconds, busy_seconds=busy_seconds, exit_state=exit_state)


def _row(attempt: _Attempt) -> DeviceHoursRow:
    """Derive the row of the table: idle is what was held and not worked."""
    held_seconds = attempt.wall_seconds * attempt.num_devices
    return DeviceHoursRow(
        run=attempt.run,
        phase=attempt.phase,
        instance=attempt.instance,
        attempt=attempt.attempt,
        device=attempt.device,
        num_devices=attempt.num_devices,
        wall_seconds=attempt.wall_seconds,
        busy_seconds=min(attempt.busy_seconds, held_seconds),
        idle_seconds=max(held_seconds - attempt.busy_seconds, 0.0),
        device_hours=held_seconds / 3600,
        exit_state=attempt.exit_state,
        producer=attempt.producer,
    )


def _write(path: Path, attempt: _Attempt) -> None:
    write_atomically(path, sealed(dataclasses.asdict(attempt)))


def _read(path: Path) -> _Attempt:
    try:
        attempt = _Attempt(**read_sealed(path))
        PhaseKind(attempt.phase)
    except (ValueError, TypeError, StorageError) as error:
        raise StorageError(
            f"{path} is no record of an attempt ({error}); move it away, its device-hours are then not counted"
        ) from error
    return attempt


def _is_gone(attempt: _Attempt) -> bool:
    """Whether an attempt of this machine was killed and no later one has noticed yet."""
    is_here = socket.gethostname() == attempt.host
    return attempt.exit_state == _OPEN and is_here and not _lives(attempt)


def _lives(attempt: _Attempt) -> bool:
    """Whether the process of an attempt still runs; a later process with the same number is another one."""
    return attempt.host == socket.gethostname() and _process_start(attempt.process) == attempt.process_start != 0


def _process_start(process: int) -> int:
    """Start of a process in clock ticks since boot, 0 where there is none; tells processes of one number apart."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0
