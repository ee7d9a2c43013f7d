"""Training goes on when pictures turn bad, with the labels and bank rows of those that stand in, and counts them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data.loading import picture_folder
from finetune.conftest import CLASSES, TensorBank
from torch import Tensor, nn

from ekgsearch.bank.rows import BankRows
from ekgsearch.channels.norm import recalibrate
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.subset import permutation
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.errors import DataError
from ekgsearch.finetune.average import recalibrate_on
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.world import World

ALONE = World(torch.device("cpu"))


class AskedBank(TensorBank):
    """Notes whose rows are read."""

    asked: list[int] = []  # noqa: RUF012

    def read(self, ids: Tensor) -> BankRows:
        self.asked.extend(ids.tolist())
        return super().read(ids)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainData:
    """Sixteen pictures of two classes, of which one of each class has become empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = picture_folder(tmp_path / "pictures", train=8)
    train_set = open_dataset("image_folder", root, image_size=8, num_threads=1).train
    for name in ("cat/02.jpg", "dog/07.jpg"):
        (root / "train" / name).write_bytes(b"")
    return TrainData(train_set, Normalisation((60.0,) * 3, (50.0,) * 3), max_damaged=0.1, threads=1)


def configured(**changes: object) -> FinetuneConfig:
    fields = {"objective": "ekg", "epochs": 2, "batch_size": 8, "milestones": (), "augmentation": Augmentation(pad=1)}
    return FinetuneConfig(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_damaged_images_are_replaced_and_counted(
    data: TrainData, make_network: Callable[[], nn.Module], accumulate: int
) -> None:
    bank = AskedBank(torch.zeros(16, CLASSES, 2), torch.zeros(16, 8, 2))
    bank.asked.clear()
    result = train(make_network(), data, configured(accumulate=accumulate), world=ALONE, bank=bank)
    assert [epoch.replaced_images for epoch in result.epochs] == [2, 2]
    assert [epoch.images for epoch in result.epochs] == [16, 16]
    for asked in (bank.asked[:16], bank.asked[16:]):
        assert sorted(asked) == sorted([*({*range(16)} - {2, 15}), 3, 8])


def test_recalibration_reads_what_stands_in(data: TrainData, make_network: Callable[[], nn.Module]) -> None:
    found, expected = make_network(), make_network()
    recalibrate_on(found, data, images=16, seed=1)
    order = permutation(16, 1, 0)
    sound = torch.where(order == 2, 3, torch.where(order == 15, 8, order))
    recalibrate(expected, [data.normalisation(data.train.read(sound))])
    assert torch.equal(found[1].running_mean, expected[1].running_mean)  # type: ignore[index]
    with pytest.raises(DataError, match="expected at most 0 damaged pictures, found 1"):
        recalibrate_on(found, replace(data, max_damaged=0.0), images=16, seed=1)


def test_too_many_damaged_images_stop_the_training(data: TrainData, make_network: Callable[[], nn.Module]) -> None:
    few = TrainData(data.train, data.normalisation, max_damaged=0.0, threads=1)
    with pytest.raises(DataError, match=r"expected at most 0 damaged pictures, found 1; .*the file is empty"):
        train(make_network(), few, configured(objective="plain"), world=ALONE)
