"""Fill the local file of a memory bank from the store, in the background, what is waited for first."""

import logging
import threading

import numpy as np

from ekgsearch.bank.cache import BankCache
from ekgsearch.bank.commit import StoredBank
from ekgsearch.bank.layout import block_rows
from ekgsearch.bank.shards import read_shard
from ekgsearch.errors import EkgError, StorageError
from ekgsearch.storage.files import write_error
from ekgsearch.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

NUM_READERS = 4
"""Blocks fetched at a time; object stores answer one request slowly and several fast."""


class Filler:
    """Threads that bring every block of a bank into the local file; one process of a machine has them."""

    def __init__(self, store: ObjectStore, bank: StoredBank, cache: BankCache) -> None:
        """Prepare to fill.

        Args:
            store: where the shards live.
            bank: the committed bank.
            cache: the local file.
        """
        self._store = store
        self._bank = bank
        self._cache = cache
        self._pending = np.zeros(bank.manifest.spec.num_blocks, dtype=bool)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: EkgError | None = None
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        """Begin to fill, unless a process of this machine does already; go on after one that was killed.

        Raises:
            EkgError: what made an earlier attempt of this process fail.
        """
        if self._error is not None:
            raise self._error
        if (self._thread is None or not self._thread.is_alive()) and self._cache.become_filler():
            self._pending = ~self._cache.blocks_there()
            self._thread = threading.Thread(target=self._fill, name="bank-filler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Fetch no further block; does not wait for those under way."""
        self._stop.set()

    def _fill(self) -> None:
        readers = [threading.Thread(target=self._work, name=f"bank-{n}", daemon=True) for n in range(NUM_READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        self._cache.retire()

    def _work(self) -> None:
        try:
            while (block := self._next()) is not None:
                if not self._cache.holds(block):
                    self._cache.write(block, read_rows(self._store, self._bank, block))
                self._cache.publish(block)
        except EkgError as error:
            self._fail(error)
        except OSError as error:
            self._fail(write_error(self._cache.path, error, self._bank.manifest.spec.num_bytes))
        except Exception as error:  # of whatever kind: readers wait for this thread
            failure = StorageError(
                f"{self._cache.path}: expected the shards of {self._store.uri}, found {type(error).__name__}: {error}; "
                "run the same command again, and report it if it stays"
            )
            failure.__cause__ = error
            self._fail(failure)

    def _fail(self, error: EkgError) -> None:
        self._error = error
        self._stop.set()

    def _next(self) -> int | None:
        """Take a block off the list, one that is waited for if there is one."""
        with self._lock:
            if self._stop.is_set() or not self._pending.any():
                return None
            wanted = self._pending & self._cache.blocks_wanted()
            block = int(np.argmax(wanted if wanted.any() else self._pending))
            self._pending[block] = False
            return block


def read_rows(store: ObjectStore, bank: StoredBank, block: int) -> np.ndarray:
    """Put the columns of one block side by side, each of them verified.

    Args:
        store: where the shards live.
        bank: the committed bank.
        block: block index, from 0.

    Returns:
        Rows (rows, row_bytes), uint8, in the order of `bank_layout`; see `ekgsearch.bank.rows.RowFormat`.

    Raises:
        StorageError: a shard is missing, truncated or altered; the message names the object.
    """
    spec = bank.manifest.spec
    packed = np.zeros((block_rows(spec, block), spec.row_format.row_bytes), dtype=np.uint8)
    for position, column in enumerate(bank.columns):
        stored = read_shard(store, column.spec, column.shards[block])
        spec.row_format.place(packed, position % spec.num_teachers, stored)
    return packed
