"""A small bank whose every number is known, and stores that count or hold back what is read."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ekgsearch.bank.build import write_block
from ekgsearch.bank.commit import commit
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.storage.local_store import LocalStore

IMAGES, CLASSES, TEACHERS = 200, 6, 3


class WatchedStore(LocalStore):
    """A folder that notes which objects are read, and may let readers wait."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []
        self.gates: dict[str, threading.Event] = {}

    def get(self, key: str) -> bytes:
        self.reads.append(key)
        if key in self.gates:
            assert self.gates[key].wait(30)
        return super().get(key)


def logits_of(ids: Tensor) -> Tensor:
    """Logits (B, C, K) that tell image, class and teacher."""
    values = torch.arange(CLASSES * TEACHERS, dtype=torch.float32).view(CLASSES, TEACHERS)
    return ids[:, None, None] + values / 32


@pytest.fixture
def bank_spec() -> BankSpec:
    return BankSpec(
        dataset_hash="d",
        weights_hash="w",
        teachers=tuple("abc"),
        num_images=IMAGES,
        num_classes=CLASSES,
        batch_size=8,
        batches_per_block=2,
        dtype="float32",
    )


@pytest.fixture
def filled(bank_spec: BankSpec, tmp_path: Path) -> WatchedStore:
    """A store with the whole bank."""
    store = WatchedStore(tmp_path / "store")
    for block, ids in enumerate(bank_layout(bank_spec)):
        write_block(store, bank_spec, block, BankRows(logits_of(ids)))
    commit(store, bank_spec)
    store.reads.clear()
    return store
