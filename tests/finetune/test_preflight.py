"""What is said and refused before the first step."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ekgsearch.bank.manifest import BankSpec
from ekgsearch.errors import JobError
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.preflight import arithmetic, check
from ekgsearch.finetune.world import World

CONFIG = FinetuneConfig(epochs=3, batch_size=16, learning_rate=0.1, milestones=(2,))
START = "training (ekg) for 3 epochs of 3 steps: one step takes 16 of 49 images = "


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (1, {}, "1 process x 1 micro-batch x 16 images, each in 2 views; {left} batch statistics cover 32 views {one}"),
        (
            4,
            {},
            "4 processes x 1 micro-batch x 4 images, each in 2 views; {left} batch statistics cover 8 views {one}",
        ),
        (
            2,
            {"accumulate": 2},
            "2 processes x 2 micro-batches x 4 images, each in 2 views; {left} batch statistics cover 8 views {one}",
        ),
        (
            2,
            {"accumulate": 2, "synchronised_norm": True},
            "2 processes x 2 micro-batches x 4 images, each in 2 views; {left} batch statistics cover 16 views {all}",
        ),
    ],
)
def test_batch_arithmetic_in_words(data: TrainData, size: int, options: dict[str, object], expected: str) -> None:
    part = replace(data, ids=torch.arange(49) % 48)
    words = arithmetic(part, replace(CONFIG, **options), World(torch.device("cpu"), 0, size))
    left = "1 images sit out each epoch;"
    assert words == START + expected.format(left=left, one="of one process", all="of all processes")


def test_one_view_for_the_label_alone(data: TrainData) -> None:
    words = arithmetic(data, replace(CONFIG, objective="plain"), World(torch.device("cpu")))
    assert "16 images, each in 1 view; 0 images sit out each epoch; batch statistics cover 16 views" in words


@dataclass
class FoundBank:
    """A bank that was opened."""

    spec: BankSpec

    def __len__(self) -> int:
        return self.spec.num_images


def test_a_bank_must_cover_the_images_in_use(data: TrainData) -> None:
    def check_with(ids: Tensor | None, covered: tuple[tuple[int, int], ...]) -> None:
        count = sum(stop - start for start, stop in covered)
        spec = BankSpec(dataset_hash="", weights_hash="", teachers=("a",), num_images=count, num_classes=2, ids=covered)
        bank: Any = FoundBank(spec)
        check(replace(data, ids=ids), CONFIG, World(torch.device("cpu")), bank, None, None)

    used, whole = torch.tensor([*range(20), 30]), ((0, len(data.train)),)
    check_with(used, ((0, 20), (30, 31)))
    check_with(used, whole)
    check_with(None, whole)
    for ids, covered in ((used, ((0, 21),)), (None, ((0, 20), (30, 31)))):
        with pytest.raises(
            JobError, match=r"expected a memory bank that covers the \d+ training images in use, found one"
        ):
            check_with(ids, covered)
