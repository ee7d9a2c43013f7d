"""Claims: of several processes that need the same piece of work, one does it and the others wait for it.

Below a prefix a claim is a create-once object ``claims/000001``, ``claims/000002``, ...; the newest counts. Its holder
rewrites ``beats/000001`` every few seconds, and says there that it has ended. A waiter takes the next number once the
newest claim and its beat have not changed for one lease by the waiter's own monotonic clock; nobody's time stamps are
read.

A claim only saves work. A holder that was paused for longer than a lease is replaced without noticing it, goes on, and
does the same work a second time; what it stores has to be created once, so that the first result wins.
"""

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ekgsearch.errors import StorageError
from ekgsearch.storage.clocks import Clock, MonotonicClock
from ekgsearch.storage.objects import ObjectStore

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_ENDED = "ended"
_CHECK_SECONDS = 0.5  # half of what is promised
_LAST_WORD_SECONDS = (
    5.0  # a store that fails is not waited for any longer when a holder ends: waiters wait out the lease
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times of the protocol.

    Attributes:
        lease_seconds: so long a waiter sees no sign of life before it replaces a holder.
        beat_seconds: pause between two signs of life.
        poll_seconds: pause between two looks of a waiter.
    """

    lease_seconds: float = 30.0
    beat_seconds: float = 5.0
    poll_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < 2 * self.beat_seconds <= self.lease_seconds or self.poll_seconds <= 0:
            raise ValueError(f"expected pauses above 0 and a lease of two beats at least, found {self}")


def read_if_there(store: ObjectStore, key: str) -> bytes | None:
    """Read an object by the one request that also finds out whether there is any.

    Args:
        store: where to look.
        key: key of the object.

    Returns:
        Its bytes, or None where there is none.

    Raises:
        StorageError: the store cannot be read.
    """
    try:
        return store.get(key)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A piece of work that one of several processes is to do.

    Attributes:
        store: store with create-once writes that all of them see.
        prefix: begin of the keys of the claims, with ``/`` at its end.
        title: what the work is, for the log.
        is_done: whether the result is stored; called often, from another thread.
    """

    store: ObjectStore
    prefix: str
    title: str
    is_done: Callable[[], bool]

    def claim_key(self, number: int) -> str:
        """Key of a claim; numbers begin with 1."""
        return f"{self.prefix}claims/{number:06}"

    def beat_key(self, number: int) -> str:
        """Key of the heart-beat of a claim's holder."""
        return f"{self.prefix}beats/{number:06}"


def _never() -> None:
    return


_MONOTONIC = MonotonicClock()
_DEFAULT_PACE = Pace()


@contextlib.contextmanager
def claimed(
    work: Work,
    holder: str,
    *,
    check: Callable[[], None] = _never,
    on_wait: Callable[[], None] = _never,
    owner: str = "",
    pace: Pace = _DEFAULT_PACE,
    clock: Clock = _MONOTONIC,
) -> Iterator[bool]:
    """Wait until a piece of work is done, or is this process's to do.

    Claim before anything costly is started, such as workers, and store the result within the ``with`` block: at its
    end, also by an exception, the others are told that the claim is free.

    Args:
        work: what is to be done.
        holder: name of this run, which others read in their logs.
        check: called at least once a second while waiting; what it raises ends the wait.
        on_wait: called once when waiting for another process begins, such as to let go what that one may need.
        owner: identity of which one process lives at most: what an earlier one of it has claimed is free at once.
        pace: times of the protocol.
        clock: time and threads.

    Yields:
        Whether this process is to do the work; else it is done.

    Raises:
        StorageError: the store has failed for a whole lease.
    """
    token = f"{secrets.token_hex(16)}:{owner} {holder}"
    number = _Waiter(work, token, check, on_wait, pace, clock).wait()
    if number:
        with _beating(work, number, token, pace, clock):
            if not work.is_done():  # stored since the last look, by a holder that had been given up
                yield True
                return
    yield False


@contextlib.contextmanager
def _beating(work: Work, number: int, token: str, pace: Pace, clock: Clock) -> Iterator[None]:
    """Show signs of life in the background until the block ends, and say then that it has."""
    is_over, has_said_so = threading.Event(), threading.Event()

    def beat(sign: object) -> None:
        try:
            work.store.put(work.beat_key(number), f"{token}\n{sign}".encode())
        except StorageError as error:
            _log.warning("%s: no sign of life could be written, which another run may take up: %s", work.title, error)

    def beat_on() -> None:
        count = 0
        while not is_over.is_set():
            beat(count)
            count += 1
            clock.wait(is_over, pace.beat_seconds)
        beat(_ENDED)  # by the thread that wrote the others, so that none of them comes later
        has_said_so.set()

    clock.start(beat_on)
    try:
        yield
    finally:
        is_over.set()
        clock.wait(has_said_so, _LAST_WORD_SECONDS)


@dataclass
class _Waiter:
    """One process's view of the claims.

    Attributes:
        number: newest claim that was seen; 0 is none.
        claim: its content.
        beat: newest beat of it.
        since: when claim and beat were first seen like this; None where a look has failed since.
        unchanged_seconds: so long neither has changed for certain.
        failing_since: when the store began to fail; None where it answers.
    """

    work: Work
    token: str
    check: Callable[[], None]
    on_wait: Callable[[], None]
    pace: Pace
    clock: Clock
    number: int = 0
    claim: str = ""
    beat: bytes | None = None
    since: float | None = None
    unchanged_seconds: float = 0.0
    failing_since: float | None = None
    told: int = 0
    sleeper: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> int:
        """Wait for the result (0) or a claim of this process's own (its number)."""
        while True:
            number = self._try()
            if number is not None:
                return number

    def _try(self) -> int | None:
        """Look once, and take the next number if it is free; else pause."""
        try:
            if self._interruptible(self._look):
                return 0
            if self.claim == self.token:
                return self.number  # the answer that it was created had been lost
            if self._is_free():
                return self._take()
            self.failing_since = None
        except StorageError as error:
            self._bear(error)
        self._tell()
        self._pause()
        return None

    def _look(self) -> bool:
        """Read the newest claim and its beat, then whether the work is done: a holder stores before it ends."""
        store, number = self.work.store, self.number
        while (found := read_if_there(store, self.work.claim_key(number + 1))) is not None:
            number, self.claim = number + 1, found.decode(errors="replace")
        before = self.clock.now()
        beat = read_if_there(store, self.work.beat_key(number)) if number else None
        if (number, beat) != (self.number, self.beat) or self.since is None:
            self.number, self.beat, self.since = number, beat, self.clock.now()
        self.unchanged_seconds = before - self.since
        return self.work.is_done()

    def _is_free(self) -> bool:
        is_quiet = self.unchanged_seconds >= self.pace.lease_seconds
        return self.number == 0 or self._has_ended() or is_quiet or self._is_from_an_earlier_process()

    def _is_from_an_earlier_process(self) -> bool:
        theirs, ours = (text.partition(" ")[0].partition(":")[2] for text in (self.claim, self.token))
        return theirs == ours != ""

    def _has_ended(self) -> bool:
        return self.beat is not None and self.beat.endswith(f"\n{_ENDED}".encode())

    def _take(self) -> int | None:
        """Take the next number; None where another process was faster."""
        number = self.number + 1
        store, key, token = self.work.store, self.work.claim_key(number), self.token.encode()
        # read back: a server that looks first and writes then (OpenStack Swift) tells several that they have won
        if not self._interruptible(lambda: store.create(key, token) and store.get(key) == token):
            return None
        if self.number and not self._has_ended() and not self._is_from_an_earlier_process():
            words = "%s: the run %r has shown no sign of life for %.0f s; this run takes its place"
            _log.warning(words, self.work.title, self._holder(), self.unchanged_seconds)
        return number

    def _bear(self, error: StorageError) -> None:
        """Let a store fail for one lease; nothing is known about the holder meanwhile, whom it fails as well."""
        self.since = None
        if self.failing_since is None:
            self.failing_since = self.clock.now()
            _log.warning("%s: cannot look for the run that computes it: %s", self.work.title, error)
        if self.clock.now() - self.failing_since >= self.pace.lease_seconds:
            raise error

    def _tell(self) -> None:
        if self.number > self.told:
            if not self.told:
                self.on_wait()
            self.told = self.number
            _log.info("waiting for the run that computes %s: %r", self.work.title, self._holder())

    def _holder(self) -> str:
        return self.claim.partition(" ")[2]

    def _pause(self) -> None:
        end = self.clock.now() + self.pace.poll_seconds
        while (left := end - self.clock.now()) > 0:
            self.check()
            self.clock.wait(self.sleeper, min(left, _CHECK_SECONDS))

    def _interruptible(self, action: Callable[[], _Result]) -> _Result:
        """Do something in the background and `check` meanwhile: a store that hangs or fails keeps nobody."""
        results: list[_Result] = []
        errors: list[BaseException] = []
        is_over = threading.Event()

        def act() -> None:
            try:
                results.append(action())
            except Exception as error:
                errors.append(error)
            finally:
                is_over.set()

        self.check()
        self.clock.start(act)
        while not is_over.is_set():
            self.clock.wait(is_over, _CHECK_SECONDS)
            self.check()
        if errors:
            raise errors[0]
        return results[0]
