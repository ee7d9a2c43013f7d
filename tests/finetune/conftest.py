"""A tiny image set, a network with normalisation and dropout, and a bank that is a plain tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ekgsearch.bank.rows import BankRows
from ekgsearch.data.datasets import ArrayImages
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.finetune.config import FinetuneConfig, TrainData

CLASSES = 3
FEATURES = 8
CLASSIFIER = "6"
"""Path of the linear layer of `make_network`."""


@dataclass(frozen=True)
class TensorBank:
    """Rows of a memory bank held in memory."""

    rows: Tensor
    embeddings: Tensor

    @property
    def spec(self) -> SimpleNamespace:
        return SimpleNamespace(
            sha256="b" * 64, embeddings=self.embeddings.shape[1], image_ids=torch.arange(len(self.rows))
        )

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, ids: Tensor) -> BankRows:
        return BankRows(self.rows[ids], self.embeddings[ids])


def make_images(count: int, seed: int) -> ArrayImages:
    """Noise with a bright block whose place tells the class."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    for image, label in enumerate(labels.tolist()):
        pixels[image, label, 2:6, 2:6] += 100
    return ArrayImages(pixels, labels)


def make_data() -> TrainData:
    return TrainData(make_images(48, 1), Normalisation((60.0,) * 3, (50.0,) * 3), test=make_images(30, 2))


def make_bank() -> TensorBank:
    """Four teachers of growing noise around the right answer."""
    noise = torch.randn(48, CLASSES, 4, generator=torch.Generator().manual_seed(3))
    right = nn.functional.one_hot(torch.arange(48) % CLASSES, CLASSES).float()
    logits = 2 * right[:, :, None] + noise * torch.tensor([0.1, 0.5, 1.0, 2.0])
    features = torch.randn(48, FEATURES, 4, generator=torch.Generator().manual_seed(4))
    features[:, :CLASSES] += 3 * right[:, :, None]
    return TensorBank(logits, features)


@pytest.fixture
def data() -> TrainData:
    return make_data()


@pytest.fixture
def make_network() -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout(0.2),
                nn.Linear(6, CLASSES),
            )

    return make


@pytest.fixture
def bank() -> TensorBank:
    return make_bank()


@pytest.fixture
def config() -> FinetuneConfig:
    return FinetuneConfig(
        epochs=4, batch_size=16, learning_rate=0.05, milestones=(3,), augmentation=Augmentation(pad=1, flip=True)
    )
