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
from ekgsearch.data.encoded import DamagedImageError
from ekgsearch.data.subset import permutation
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.errors import DataError
from ekgsearch.finetune.average import recalibrate_on
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import StepReport
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
    """Sixteen pictures of two classes, of which one of each class has become empty, and two sound ones to evaluate."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = picture_folder(tmp_path / "pictures", train=8)
    dataset = open_dataset("image_folder", root, image_size=8, num_threads=1)
    for name in ("cat/02.jpg", "dog/07.jpg"):
        (root / "train" / name).write_bytes(b"")
    normalisation = Normalisation((60.0,) * 3, (50.0,) * 3)
    return TrainData(dataset.train, normalisation, test=dataset.test, max_damaged=0.1, threads=1)


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


def test_a_damaged_test_picture_is_named_and_costs_no_step(
    data: TrainData, make_network: Callable[[], nn.Module], tmp_path: Path
) -> None:
    config = configured(objective="plain", average_last=2, recalibrate_images=8)
    place = FolderCheckpoints(tmp_path / "checkpoints")
    whole, resumed = make_network(), make_network()
    expected = train(whole, data, config, world=ALONE)
    picture = tmp_path / "pictures" / "val" / "dog" / "00.jpg"
    sound = picture.read_bytes()
    taken: list[tuple[int, int]] = []

    def spoil(report: StepReport) -> None:
        taken.append((report.epoch, report.step))
        if taken[-1] == (2, 2):
            picture.write_bytes(b"")

    for _ in range(2):  # a second start meets the same damage
        with pytest.raises(DamagedImageError, match=r"val/dog/00\.jpg has changed .*; once it is restored, the same"):
            train(make_network(), data, config, world=ALONE, checkpoint=place, on_step=spoil)
        assert taken == [(1, 1), (1, 2), (2, 1), (2, 2)]
    picture.write_bytes(sound)
    torch.manual_seed(99)  # the resumed process has other random numbers in its generators
    result = train(resumed, data, config, world=ALONE, checkpoint=place, on_step=spoil)
    assert len(taken) == 4
    clocks = {"wall_seconds": 0.0, "wait_seconds": 0.0}
    assert repr([replace(row, **clocks) for row in result.epochs]) == repr(
        [replace(row, **clocks) for row in expected.epochs]
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


class TwoProcesses(World):
    """The first of two processes, of which the other met a damaged picture."""

    def sum(self, values: Tensor) -> Tensor:
        return values + torch.tensor([0.0, 0.0, 1.0])


def test_every_process_stops_at_a_test_picture_that_one_cannot_read(
    data: TrainData, make_network: Callable[[], nn.Module]
) -> None:
    sound = data.train.take(torch.tensor([0, 1, 8, 9]))
    with pytest.raises(DamagedImageError, match="1 of 2 processes met a damaged picture"):
        evaluate(make_network(), sound, data.normalisation, TwoProcesses(ALONE.device, 0, 2))
