"""Read a memory bank: the stored outputs of all teachers, by image id."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ekgsearch.bank.build import manifest_key
from ekgsearch.bank.manifest import BankManifest, BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.bank.stage import stage
from ekgsearch.errors import StorageError
from ekgsearch.storage.objects import ObjectStore


class MemoryBank:
    """Outputs of K teachers for every training image, memory-mapped from a local file.

    Attributes:
        spec: what the bank is made of.
    """

    def __init__(self, spec: BankSpec, rows: np.ndarray, device: torch.device) -> None:
        self.spec = spec
        self._rows = rows
        self._device = device

    @classmethod
    def open(
        cls, store: ObjectStore, expected: BankSpec, *, cache_dir: Path, device: torch.device | str = "cpu"
    ) -> "MemoryBank":
        """Verify a committed bank and stage it on the local disk, once for all processes of a machine.

        Args:
            store: where the bank lives.
            expected: the bank that the caller needs; any difference is refused.
            cache_dir: local folder for the staged file; a bank that is there already is verified and used.
            device: where `read` puts the rows; they travel there in the stored dtype.

        Raises:
            StorageError: no such bank, a bank of other images, teachers, weights or batches, a damaged block, or no
                space for the staged file.
        """
        manifest = read_manifest(store, expected)
        path = stage(store, manifest, cache_dir)
        return cls(expected, np.load(path, mmap_mode="r", allow_pickle=False), torch.device(device))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_teachers(self) -> int:
        """K, teachers per image; the one of the lowest loss is the first."""
        return self.spec.num_teachers

    def read(self, ids: Tensor) -> BankRows:
        """Read the outputs of all teachers for some images.

        Args:
            ids: image ids (B,), int64, any order.

        Returns:
            Logits (B, C, K) and embeddings (B, F, K), float32, on the device of the bank.

        Raises:
            StorageError: an id outside the bank.
        """
        index = ids.cpu().numpy()
        if len(index) and not (index.min() >= 0 and index.max() < len(self._rows)):
            raise StorageError(
                f"memory bank: expected image ids 0..{len(self._rows) - 1}, found {index.min()}..{index.max()}; "
                "the bank was built for another training set"
            )
        packed = torch.from_numpy(self._rows[index])
        if self._device.type == "cuda":
            packed = packed.pin_memory()
        return self.spec.row_format.decode(packed.to(self._device, non_blocking=True))


def read_manifest(store: ObjectStore, expected: BankSpec) -> BankManifest:
    """Read the manifest of a bank and compare it with what the caller needs.

    Raises:
        StorageError: no such bank (the message says how the banks that are there differ), or another one.
    """
    key = manifest_key(expected)
    if not store.exists(key):
        raise StorageError(
            f"{store.uri}/{key}: expected a complete memory bank, found none{_others(store, expected)}; build it first"
        )
    manifest = BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}")
    differences = expected.differences(manifest.spec)
    if differences:
        raise StorageError(
            f"{store.uri}/{key} is another memory bank: {'; '.join(differences)}; build one for this run or name "
            "another place for it"
        )
    if [shard.block for shard in manifest.shards] != list(range(expected.num_blocks)):
        raise StorageError(
            f"{store.uri}/{key}: expected shards of blocks 0..{expected.num_blocks - 1}, found "
            f"{len(manifest.shards)} shards; delete the manifest and build the bank again"
        )
    return manifest


def _others(store: ObjectStore, expected: BankSpec) -> str:
    """Describe the complete bank in the store that differs in the fewest fields."""
    specs = []
    for key in store.list("bank/"):
        if key.endswith("/manifest.json"):
            specs.append(BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}").spec)
    if not specs:
        return ""
    closest = min((expected.differences(spec) for spec in specs), key=len)
    return f" (the closest of {len(specs)} others differs: {'; '.join(closest)})"
