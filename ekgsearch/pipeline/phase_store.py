"""The phase store: results of phases by what they depend on, so that several runs compute each of them once.

Keys of its objects:

    phases/files/<sha256>                 content of a file of any phase
    phases/<key>/result.json              what a phase has left; created once, after its files
    phases/<key>/decisions/000001.json    decisions of a search, created once each
    phases/<key>/claims/, beats/          who computes it, see `ekgsearch.storage.claims`

The first stored result wins and every run adopts it, also one that has computed other bytes meanwhile. The files of
such a run stay in the store without a record that names them.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from ekgsearch.errors import StorageError
from ekgsearch.pipeline.phase_record import (
    PhaseRecord,
    StoredFile,
    StoredPhase,
    decision_key,
    file_key,
    parse_decision,
    parse_record,
    phase_prefix,
    record_key,
    write_decision,
    write_record,
)
from ekgsearch.storage.claims import Pace, Work, claimed, read_if_there
from ekgsearch.storage.create_once import ConditionalWriter
from ekgsearch.storage.files import make_folder, read_bytes, write_atomically
from ekgsearch.storage.objects import ObjectStore, open_store
from ekgsearch.storage.paths import inside
from ekgsearch.storage.secrets import redact


def _no_check() -> None:
    return


class PhaseStore:
    """Results of phases by key, in a folder or a bucket that lets one of several writers win.

    Every method raises `StorageError` where the store cannot be reached.
    """

    def __init__(self, store: ObjectStore, *, owner: str = "", pace: Pace | None = None) -> None:
        """Use a store whose `creates_once` is true.

        Args:
            store: where the objects are.
            owner: identity of which one process lives at most; it goes on at once with what it had claimed before.
            pace: times of the claims.
        """
        self._store = store
        self._owner = owner
        self._pace = pace or Pace()

    @classmethod
    def open(cls, uri: str, *, owner: str = "", pace: Pace | None = None) -> Self:
        """Open the phase store at an address.

        Args:
            uri: a folder (relative ones are taken as they are) or the address of a bucket, see `open_store`.
            owner: see `__init__`.
            pace: times of the claims.

        Raises:
            StorageError: the address is not understood, or the store has no create-once writes.
        """
        store = open_store(uri)
        if not store.creates_once:
            raise StorageError(
                f"phases.uri = {uri} cannot be a phase store: it has no create-once writes ({_reason_against(uri)}), "
                "so two runs could adopt different results; use a folder on a file system with hard links, or an "
                "s3:// or gs:// bucket whose server keeps to If-None-Match, or leave phases.uri out"
            )
        return cls(store, owner=owner, pace=pace)

    @property
    def uri(self) -> str:
        """Address without credentials."""
        return self._store.uri

    def find(self, key: str) -> StoredPhase | None:
        """Read what is stored of a phase, by one request; None where nothing is.

        Raises:
            StorageError: the record is damaged.
        """
        name = record_key(key)
        data = read_if_there(self._store, name)
        return None if data is None else parse_record(key, data, self.uri)

    def fetch(self, stored: StoredPhase, folder: Path) -> None:
        """Copy the files of a phase, each whole or not at all; what has their names is replaced.

        Args:
            stored: the phase.
            folder: run directory.

        Raises:
            StorageError: a name leads out of the folder (nothing is written then), or a file is missing or damaged in
                the store.
        """
        paths = {name: inside(folder, name) for name in stored.files}
        for name, file in stored.files.items():
            data = self._content(stored, name, file)
            make_folder(paths[name].parent)
            write_atomically(paths[name], data)

    def keep(self, key: str, record: PhaseRecord, files: Iterable[str], folder: Path) -> StoredPhase:
        """Store a phase unless it is stored already: its files first, then the record that names them.

        Args:
            key: hash of what it depends on.
            record: what to state about it.
            files: names of its files in the run directory.
            folder: run directory.

        Returns:
            What is stored now, which may be another run's result: adopt it then with `fetch`.

        Raises:
            StorageError: a file is missing, its name leads out of the folder, or the record is no JSON value.
        """
        name = record_key(key)
        contents = {file: self._keep_file(inside(folder, file)) for file in dict.fromkeys(files)}
        data = write_record(key, record, contents)
        return parse_record(key, self._created(name, data), self.uri)

    @contextlib.contextmanager
    def claimed(
        self,
        key: str,
        *,
        title: str,
        producer: str,
        check: Callable[[], None] = _no_check,
        on_wait: Callable[[], None] = _no_check,
    ) -> Iterator[StoredPhase | None]:
        """Get a phase that is stored, perhaps after waiting for the run that computes it, or the right to compute it.

            with store.claimed(key, title="search", producer=run) as stored:
                if stored is None:
                    ...  # start workers, compute
                    stored = store.keep(key, record, files, folder)

        Args:
            key: hash of what the phase depends on.
            title: name of the phase, for the log.
            producer: name of this run, which waiting ones read in their logs.
            check: called at least once a second while waiting; what it raises ends the wait.
            on_wait: called once when waiting for another run begins.

        Yields:
            The stored phase; None where this run is to compute it, and others wait until the block ends.

        Raises:
            StorageError: the record is damaged.
        """
        stored = self.find(key)
        if stored is not None:
            yield stored
            return
        name = record_key(key)
        work = self._work(key, f"the phase {title!r}", name)
        with claimed(work, producer, check=check, on_wait=on_wait, owner=self._owner, pace=self._pace) as is_mine:
            yield None if is_mine else parse_record(key, self._store.get(name), self.uri)

    @contextlib.contextmanager
    def decision_claimed(
        self,
        key: str,
        number: int,
        *,
        producer: str,
        check: Callable[[], None] = _no_check,
        on_wait: Callable[[], None] = _no_check,
    ) -> Iterator[tuple[dict[str, Any], str] | None]:
        """Get a decision that another run makes while this one waits, or the right to decide from it on.

        Args:
            key: hash of what the search depends on.
            number: of the decision.
            producer: name of this run, which waiting ones read in their logs.
            check: called at least once a second while waiting; what it raises ends the wait.
            on_wait: called once when waiting for another run begins.

        Yields:
            The decision and the run that made it; None where this run is to decide, and others wait for what it stores
            until the block ends.
        """
        work = self._work(key, f"decision {number} of a search", decision_key(key, number))
        with claimed(work, producer, check=check, on_wait=on_wait, owner=self._owner, pace=self._pace) as is_mine:
            yield None if is_mine else self.decision(key, number)

    def decision(self, key: str, number: int) -> tuple[dict[str, Any], str] | None:
        """Read one decision of a search and the run that made it, by one request; None where it is not stored.

        Args:
            key: hash of what the search depends on.
            number: of the decision, from 0.
        """
        data = read_if_there(self._store, decision_key(key, number))
        return None if data is None else parse_decision(key, number, data, self.uri)

    def keep_decision(
        self, key: str, number: int, record: Mapping[str, Any], producer: str
    ) -> tuple[dict[str, Any], str]:
        """Store a decision unless it is stored already.

        Args:
            key: hash of what the search depends on.
            number: of the decision, from 0.
            record: the decision, a JSON dictionary.
            producer: name of this run.

        Returns:
            The decision that is stored now, and the run that made it.
        """
        data = write_decision(key, number, record, producer)
        return parse_decision(key, number, self._created(decision_key(key, number), data), self.uri)

    def _created(self, name: str, data: bytes) -> bytes:
        """Create an object unless another is there; what is there now.

        It is read in any case: a server that looks first and writes then, as OpenStack Swift does, tells several
        writers of the same moment that they have won. This narrows the gap, only the server can close it.
        """
        self._store.create(name, data)
        return self._store.get(name)

    def _work(self, key: str, title: str, result: str) -> Work:
        """The work that ends when the store has an object."""
        return Work(
            store=self._store,
            prefix=phase_prefix(key),
            title=title,
            is_done=lambda: read_if_there(self._store, result) is not None,
        )

    def _keep_file(self, path: Path) -> StoredFile:
        """Store a file under its hash, also where it is already: what is there may be damaged."""
        data = read_bytes(path)
        file = StoredFile(hashlib.sha256(data).hexdigest(), len(data))
        self._store.put(file_key(file), data)
        return file

    def _content(self, stored: StoredPhase, name: str, file: StoredFile) -> bytes:
        """Read a file and verify it."""
        key = file_key(file)
        data = read_if_there(self._store, key)
        sha256 = None if data is None else hashlib.sha256(data).hexdigest()
        if data is None or sha256 != file.sha256:
            found = "nothing" if data is None else f"{len(data)} bytes with SHA-256 {sha256}"
            raise StorageError(
                f"{key!r} in the phase store {self.uri}, which is {name!r} of the phase {stored.key} computed by "
                f"{stored.producer!r}, is {'missing' if data is None else 'damaged'}: expected {file.num_bytes} bytes, "
                f"found {found}; restore it, or remove {record_key(stored.key)!r} from the store, and the next run "
                "computes the phase again"
            )
        return data


def _reason_against(uri: str) -> str:
    """Ask for the reason once more, which a store only logs."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return "its file system has no hard links"
    try:
        reason = ConditionalWriter(uri).reason_against(parts.path.strip("/"))
    except OSError as error:
        reason = redact(str(error))
    return reason or "the server has not answered for a moment; the same command may find it well again"
