"""Read a memory bank: the stored outputs of all teachers, by image id."""

import logging
import time
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ekgsearch.bank.cache import BankCache
from ekgsearch.bank.commit import read_bank
from ekgsearch.bank.fill import Filler
from ekgsearch.bank.layout import bank_layout, block_rows
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.row_file import RowFile
from ekgsearch.bank.rows import BankRows
from ekgsearch.errors import StorageError
from ekgsearch.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

_NOWHERE = -1
POLL_SECONDS = 0.01
LOG_SECONDS = 30.0


class MemoryBank:
    """Outputs of K teachers for the training images that it covers, from a local file or from the memory of the device.

    Attributes:
        spec: what the bank is made of.
    """

    def __init__(self, spec: BankSpec, cache: BankCache, filler: Filler, device: torch.device) -> None:
        self.spec = spec
        self._cache = cache
        self._filler = filler
        self._device = device
        self._rows = RowFile(cache.path, self.spec.num_images, self.spec.row_format.row_bytes)
        self._position_of = np.full(int(self.spec.image_ids[-1]) + 1, _NOWHERE, dtype=np.int32)
        self._position_of[self.order.numpy()] = np.arange(self.spec.num_images, dtype=np.int32)
        self._is_full = False
        self._resident: Tensor | None = None
        weakref.finalize(self, filler.stop)

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        expected: BankSpec,
        *,
        cache_dir: Path,
        device: torch.device | str = "cpu",
        resident: bool = False,
    ) -> "MemoryBank":
        """Verify a committed bank and begin to fill its local file, once for all processes of a machine.

        The file is filled in the background: `read` waits for the blocks it needs, which are fetched before others.

        Args:
            store: where the bank lives.
            expected: the bank that the caller needs; any difference is refused.
            cache_dir: local folder for the file; what is there already is verified and used.
            device: where `read` puts the rows; they travel there in the stored dtype.
            resident: wait for the whole bank and hold it in the memory of a GPU, if half of what is free suffices. On
                a CPU the file stays the only copy: the system keeps it in memory, once for all processes.

        Raises:
            StorageError: no such bank, a bank of other images, teachers, weights or batches, or no space for the file.
        """
        stored = read_bank(store, expected)
        cache = BankCache(stored.manifest, cache_dir)
        filler = Filler(store, stored, cache)
        filler.ensure_running()
        bank = cls(expected, cache, filler, torch.device(device))
        if resident:
            bank._load()
        return bank

    def __len__(self) -> int:
        return self.spec.num_images

    @property
    def num_teachers(self) -> int:
        """K, teachers per image; the one of the lowest loss is the first."""
        return self.spec.num_teachers

    @property
    def order(self) -> Tensor:
        """Image ids (N,), int64, in the order in which the rows lie: read like this, the bank is fastest."""
        return torch.cat(bank_layout(self.spec))

    @property
    def is_resident(self) -> bool:
        """Whether the whole bank lies in the memory of the GPU."""
        return self._resident is not None

    def read(self, ids: Tensor) -> BankRows:
        """Read the outputs of all teachers for some images.

        Args:
            ids: image ids (B,), int64, any order.

        Returns:
            Logits (B, C, K) and embeddings (B, F, K), float32, on the device of the bank.

        Raises:
            StorageError: an id outside the bank, a damaged or missing shard, or a store that does not answer.
        """
        return self.spec.row_format.decode(self.read_packed(ids))

    def read_packed(self, ids: Tensor) -> Tensor:
        """Read rows as they are stored; see `read`.

        Returns:
            Bytes (B, row_bytes), uint8, on the device of the bank.
        """
        positions = self._positions(ids.cpu().numpy())
        if self._resident is not None:
            return self._resident.index_select(0, torch.from_numpy(positions).to(self._device))
        if not self._is_full:
            self._await(np.unique(positions // block_rows(self.spec, 0)))
        packed = self._rows.gather(positions, pinned=self._device.type == "cuda")
        return packed.to(self._device, non_blocking=True)

    def _positions(self, index: np.ndarray) -> np.ndarray:
        """Rows (B,) of image ids (B,)."""
        limit = len(self._position_of)
        is_outside = (index < 0) | (index >= limit)
        positions = self._position_of[np.where(is_outside, 0, index)]
        is_outside |= positions == _NOWHERE
        if is_outside.any():
            raise StorageError(
                f"memory bank: expected ids of the {len(self)} images that it covers, among 0..{limit - 1}, found "
                f"{index[is_outside][:5].tolist()}; the bank was built for other training images"
            )
        return np.asarray(positions)

    def wait(self) -> None:
        """Wait until the whole bank is in the local file.

        Raises:
            StorageError: a damaged or missing shard, or a store that does not answer.
        """
        self._await(np.arange(self.spec.num_blocks))

    def _await(self, blocks: np.ndarray) -> None:
        """Wait for blocks; take over from a process that was killed while it filled the file."""
        is_there = self._cache.blocks_there()
        if not is_there[blocks].all():
            self._cache.want(blocks[~is_there[blocks]])
        started = logged = time.monotonic()
        while not is_there[blocks].all():
            self._filler.ensure_running()
            time.sleep(POLL_SECONDS)
            is_there = self._cache.blocks_there()
            if time.monotonic() - logged > LOG_SECONDS:
                logged = time.monotonic()
                logger.info(
                    "memory bank: %d of %d blocks after %.0f s", is_there.sum(), len(is_there), logged - started
                )
        self._is_full = bool(is_there.all())

    def _load(self) -> None:
        """Copy the whole bank into the memory of the GPU, where it fits."""
        if self._device.type == "cpu":
            logger.info("the memory bank stays in its file, which all processes share: there is no GPU to hold it")
            return
        free = int(torch.cuda.mem_get_info(self._device)[0])
        if self.spec.num_bytes > free / 2:
            logger.info(
                "the memory bank stays in its file: it takes %d bytes, %s has %d free and half of that is for it",
                self.spec.num_bytes,
                self._device,
                free,
            )
            return
        self.wait()
        resident = torch.empty(len(self), self.spec.row_format.row_bytes, dtype=torch.uint8, device=self._device)
        for rows in torch.split(torch.arange(len(self)), block_rows(self.spec, 0)):
            resident[rows.to(self._device)] = self._rows.gather(rows.numpy()).to(self._device)
        self._resident = resident
