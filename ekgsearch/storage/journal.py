"""The journal of decisions: one hash-chained, fsynced JSON line each, by one driver at a time."""

import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json, content_hash
from ekgsearch.storage.files import read_bytes, sync_folder, write_error, write_fully

LOCK_SUFFIX = ".lock"
"""The lock of ``journal.jsonl`` is the file ``journal.jsonl.lock``, which holds the driver's process and host."""

_log = logging.getLogger(__name__)
_RESERVED = frozenset({"seq", "kind", "prev", "hash"})
_FIRST_PREV = "0" * 64
_LOST_SECTOR = b"\0" * 512  # what a power cut leaves where the size of the file was recorded before its bytes


class Journal:
    """An append-only file of decisions, held exclusively by one driver.

    Every line is canonical JSON with the fields ``seq`` (from 0), ``kind``, whatever the caller adds, ``prev`` (the
    hash of the line before) and ``hash`` (SHA-256 of the canonical JSON of the rest). Time stamps and host names do not
    belong in it, so that equal runs have equal bytes. Use it in a ``with`` statement.

    Attributes:
        path: the file.
        lines: all committed lines, oldest first; not to be changed by the caller.
    """

    def __init__(self, path: Path, descriptor: int, lock: int, lines: list[dict[str, Any]], size: int) -> None:
        self.path = path
        self.lines = lines
        self._descriptor = descriptor
        self._lock = lock
        self._size = size
        self._failed = False
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget_in_child(itself))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Take the lock of a journal, verify what is there and cut off a torn tail.

        A last line without its end was never committed: it is cut off with a warning. Any other broken line is damage
        and an error.

        Args:
            path: journal file; created where it is missing, its folder must exist.

        Returns:
            The journal, ready for `append`.

        Raises:
            StorageError: another driver holds the journal, a line is damaged, or the disk refuses.
        """
        lock = _take_lock(path)
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            sync_folder(path.parent)
            lines, size = _verify(path, read_bytes(path))
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
        except BaseException as error:
            if descriptor >= 0:
                os.close(descriptor)
            os.close(lock)
            if isinstance(error, OSError):
                raise write_error(path, error, 0) from error
            raise
        return cls(path, descriptor, lock, lines, size)

    @property
    def is_writable(self) -> bool:
        """Whether it is open and no write to it has failed."""
        return not self._failed and self._descriptor >= 0

    def append(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Commit one line; it is on the disk when this returns.

        Args:
            kind: what the line records, such as ``iteration``.
            **fields: JSON values without NaN and infinity; the names seq, kind, prev and hash are taken.

        Returns:
            The line as a later reader will see it (tuples become lists).

        Raises:
            StorageError: a field is no JSON value, the file has vanished, or the disk refuses. After a failed write
                every further append is refused; open the journal again.
        """
        if not self.is_writable:
            raise StorageError(f"journal {self.path} is closed or an earlier write to it failed; open it again")
        text = self._line(kind, fields)
        data = text.encode()
        try:
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                raise StorageError(f"journal {self.path} was replaced by another file; stop and look who wrote it")
            write_fully(self._descriptor, memoryview(data))
            os.fsync(self._descriptor)
        except OSError as error:
            self._give_up()
            raise write_error(self.path, error, len(data)) from error
        self._size += len(data)
        line: dict[str, Any] = json.loads(text)
        self.lines.append(line)
        return line

    def _line(self, kind: str, fields: dict[str, Any]) -> str:
        """Text of the next line, newline included."""
        taken = _RESERVED & fields.keys()
        if taken:
            raise StorageError(f"journal line {kind!r}: the field names {sorted(taken)} are taken; choose others")
        previous = self.lines[-1]["hash"] if self.lines else _FIRST_PREV
        line = {"seq": len(self.lines), "kind": kind, **fields, "prev": previous}
        try:
            line = json.loads(canonical_json(line))
            text = canonical_json({**line, "hash": content_hash(line)}) + "\n"
            text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise StorageError(
                f"journal line {kind!r} cannot be written as JSON ({error}); "
                f"expected text, finite numbers, true, false, null, lists and dictionaries with text keys"
            ) from error
        return text

    def _give_up(self) -> None:
        """Take back a half-written line as far as the disk allows, and refuse further ones."""
        self._failed = True
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            _log.warning("journal %s keeps a torn tail; the next driver cuts it off", self.path)

    def close(self) -> None:
        """Release the file and its lock; a second call does nothing."""
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read and verify a journal without taking its lock or changing it.

    Args:
        path: journal file; a driver may be writing it.

    Returns:
        All committed lines; a line whose end is not yet written is left out.

    Raises:
        StorageError: the file is missing or a line is damaged.
    """
    return _verify(path, read_bytes(path))[0]


def _take_lock(path: Path) -> int:
    """Lock the journal for this process or say who holds it."""
    lock_path = path.with_name(path.name + LOCK_SUFFIX)
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise write_error(lock_path, error, 0) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, os.pwrite(lock, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0))
    except OSError as error:
        holder = os.pread(lock, 300, 0).decode(errors="replace").strip() or "an unknown process"
        os.close(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StorageError(
                f"journal {path} is held by another driver: {holder} (lock file {lock_path}); "
                f"wait until it ends or stop it"
            ) from error
        raise write_error(lock_path, error, 0) from error
    return lock


def _forget_in_child(reference: weakref.ref[Journal]) -> None:
    """Close the journal in a forked child, which would otherwise keep the lock when the driver is killed."""
    journal = reference()
    if journal is not None:
        journal.close()


def _verify(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Check every line of a journal; return the lines and the number of bytes that they take."""
    *whole, tail = data.split(b"\n")
    if not tail and whole and _LOST_SECTOR in whole[-1]:
        tail = whole.pop()
    lines: list[dict[str, Any]] = []
    previous = _FIRST_PREV
    for number, raw in enumerate(whole, start=1):
        line = _parse(raw)
        if line is None or line["seq"] != number - 1 or line["prev"] != previous:
            raise StorageError(
                f"journal {path}, line {number} of {len(whole)} is damaged: its hash, number or link to the line "
                f"before does not fit; restore the file from a copy, or move the run directory away and start again"
            )
        lines.append(line)
        previous = line["hash"]
    size = sum(len(raw) + 1 for raw in whole)
    if tail:
        _log.warning("journal %s: the last %d bytes were never committed and are left out", path, len(data) - size)
    return lines, size


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Read one line; None where it is not exactly what `Journal.append` writes."""
    try:
        line = json.loads(raw)
        if not isinstance(line, dict) or not line.keys() >= _RESERVED:
            return None
        content = {name: value for name, value in line.items() if name != "hash"}
        is_sound = line["hash"] == content_hash(content) and canonical_json(line).encode() == raw
    except (ValueError, RecursionError):
        return None
    return line if is_sound else None
