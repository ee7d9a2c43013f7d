"""The contract of every loader, over every kind of images and every back end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.loading import PAD, RESIZED, all_ids, arrays, by_id, picture_folder, settings

from ekgsearch.data import loader
from ekgsearch.data.batching import ReadingLoader
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.images import ImageSet
from ekgsearch.data.loader import LoaderSettings, open_loader
from ekgsearch.data.subset import permutation
from ekgsearch.data.views import Augmentation, Normalisation, view
from ekgsearch.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")

SIZE = 24
CASES = tuple((source, backend) for source in ("arrays", "folder", "parquet") for backend in ("torch", "dali"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two classes as files, and the same in parquet."""
    root = picture_folder(tmp_path_factory.mktemp("pictures"))
    for split in ("train", "val"):
        files = sorted((root / split).glob("*/*.jpg"))
        columns = {
            "image": [file.read_bytes() for file in files],
            "label": [int(file.parent.name == "dog") for file in files],
        }
        pq.write_table(pa.table(columns), root / f"{split}.parquet", row_group_size=3)
    return root


@pytest.fixture(params=CASES, ids=" by ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Where the images are, and who makes their views."""
    return request.param


@pytest.fixture
def images(case: tuple[str, str], folder: Path) -> ImageSet:
    """Twelve or eleven images of two or ten classes."""
    if case[0] == "arrays":
        return arrays(11, SIZE)
    name = "image_folder" if case[0] == "folder" else "parquet"
    return open_dataset(name, folder, image_size=SIZE, num_threads=1).train


@pytest.fixture
def make(case: tuple[str, str]) -> Callable[..., LoaderSettings]:
    return lambda **changes: settings(loader=case[1], **changes)


def test_every_image_comes_once_with_its_label(images: ImageSet, make: Callable[..., LoaderSettings]) -> None:
    loader = open_loader(images, make(batch_size=5, drop_last=False))
    batches = list(loader.epoch(1))
    assert [len(batch.ids) for batch in batches] == [5, 5, len(images) - 10]
    assert len(loader) == 3
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == list(range(len(images)))
    for batch in batches:
        assert torch.equal(batch.labels, images.labels[batch.ids])
        assert (batch.views.dtype, batch.views.shape) == (torch.float32, (len(batch.ids), 2, 3, SIZE, SIZE))
        assert (batch.global_size, batch.replaced) == (len(batch.ids), 0)
        assert batch.wait_seconds >= 0
    assert loader.damaged == {}


def test_views_that_are_made_in_the_thread_of_the_computation_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ReadingLoader._views

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(0.05)
        return made(*given)

    monkeypatch.setattr(ReadingLoader, "_views", slow)
    (batch,) = open_loader(arrays(8), settings(batch_size=8)).epoch(1)
    assert batch.wait_seconds >= 0.05


def test_a_short_last_batch_is_left_out_unless_it_is_the_only_one(
    images: ImageSet, make: Callable[..., LoaderSettings]
) -> None:
    dropped = open_loader(images, make(batch_size=5))
    assert len(dropped) == len(list(dropped.epoch(1))) == 2
    alone = open_loader(images, make(batch_size=100))
    assert len(alone) == len(list(alone.epoch(1))) == 1


def test_the_order_differs_per_epoch_and_is_the_permutation(
    images: ImageSet, make: Callable[..., LoaderSettings]
) -> None:
    loader = open_loader(images, make(drop_last=False))
    for epoch in (1, 2):
        assert all_ids(loader, epoch) == permutation(len(images), 3, epoch).tolist()
    assert all_ids(loader, 1) != all_ids(loader, 2)
    some = torch.tensor([7, 2, 9])
    assert all_ids(open_loader(images, make(drop_last=False, shuffle=False), some), 5) == some.tolist()
    assert all_ids(open_loader(images, make(drop_last=False), some), 5) == some[permutation(3, 3, 5)].tolist()


def test_ranks_share_each_batch_in_order(images: ImageSet, make: Callable[..., LoaderSettings]) -> None:
    whole = list(open_loader(images, make(batch_size=5)).epoch(2))
    parts = [list(open_loader(images, make(batch_size=5, rank=rank, world_size=3)).epoch(2)) for rank in range(3)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert [share.global_size for share in shares] == [5, 5, 5]
        assert torch.equal(torch.cat([share.ids for share in shares]), batch.ids)
        assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)
        assert torch.equal(torch.cat([share.views for share in shares]), batch.views)


@pytest.mark.parametrize("augmentation", [PAD, RESIZED], ids=["pad", "resized"])
def test_a_rank_may_have_no_image_of_a_short_batch(
    images: ImageSet, make: Callable[..., LoaderSettings], augmentation: Augmentation
) -> None:
    some = torch.tensor([0, 4, 6, 9, 10])
    for rank in range(3):
        given = make(batch_size=4, drop_last=False, rank=rank, world_size=3, augmentation=augmentation)
        last = list(open_loader(images, given, some).epoch(1))[1]
        assert (len(last.ids), len(last.labels), last.global_size) == (int(rank == 2), int(rank == 2), 1)
        assert (last.views.dtype, last.views.shape) == (torch.float32, (int(rank == 2), 2, 3, SIZE, SIZE))
        assert (last.ids.dtype, last.labels.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize("augmentation", [PAD, RESIZED, Augmentation(pad=0, flip=False)], ids=["pad", "resized", "no"])
def test_a_view_replays_whatever_the_batch(
    images: ImageSet, make: Callable[..., LoaderSettings], augmentation: Augmentation
) -> None:
    first = by_id(list(open_loader(images, make(augmentation=augmentation)).epoch(3)))
    again = by_id(list(open_loader(images, make(augmentation=augmentation, batch_size=3, threads=2)).epoch(3)))
    for image_id in first.keys() & again.keys():
        assert torch.equal(first[image_id], again[image_id])
    if augmentation.flip:
        other = by_id(list(open_loader(images, make(augmentation=augmentation)).epoch(4)))
        both = sorted(first.keys() & other.keys())
        assert not any(torch.equal(first[image_id], other[image_id]) for image_id in both)
        assert not any(torch.equal(views[0], views[1]) for views in first.values())


def test_a_resumed_epoch_goes_on_where_it_was(images: ImageSet, make: Callable[..., LoaderSettings]) -> None:
    whole = list(open_loader(images, make(augmentation=RESIZED)).epoch(2))
    rest = list(open_loader(images, make(augmentation=RESIZED)).epoch(2, start=1))
    assert len(rest) == len(whole) - 1
    for expected, found in zip(whole[1:], rest, strict=True):
        assert torch.equal(expected.ids, found.ids)
        assert torch.equal(expected.views, found.views)


def test_an_epoch_may_be_left_early(images: ImageSet, make: Callable[..., LoaderSettings]) -> None:
    loader = open_loader(images, make(batch_size=2))
    for _ in loader.epoch(1):
        break
    assert len(list(loader.epoch(2))) == len(loader)


@pytest.mark.parametrize(("backend", "tolerance"), [("torch", 0.0), ("dali", 2e-4)])
@pytest.mark.parametrize(
    ("augmentation", "channels"),
    [(PAD, 3), (PAD, 4), (RESIZED, 3), (RESIZED, 1), (Augmentation(pad=2, flip=False), 3), (Augmentation(), 6)],
)
def test_views_of_arrays_are_those_of_the_function(
    augmentation: Augmentation, channels: int, backend: str, tolerance: float
) -> None:
    """DALI adds in another order, in float32."""
    images, normalisation = arrays(60, channels=channels), Normalisation((120.0,) * channels, (60.0,) * channels)
    given = settings(augmentation=augmentation, normalisation=normalisation, loader=backend)
    for batch in open_loader(images, given).epoch(2):
        for number in range(2):
            expected = view(
                images.read(batch.ids),
                batch.ids,
                augmentation=augmentation,
                normalisation=normalisation,
                seed=3,
                epoch=2,
                view=number,
            )
            assert (batch.views[:, number] - expected).abs().max() <= tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [PAD, RESIZED], ids=["pad", "resized"])
def test_images_held_on_a_gpu_give_the_views_of_those_on_the_cpu(augmentation: Augmentation) -> None:
    images, given = arrays(60), settings(augmentation=augmentation, batch_size=16, device=torch.device("cuda"))
    pairs = zip(*(open_loader(held, given).epoch(2) for held in (images, images.to("cuda"))), strict=True)
    for expected, found in pairs:
        assert found.views.device.type == found.ids.device.type == found.labels.device.type == "cuda"
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.views, expected.views)


def test_auto_leaves_arrays_to_torch_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    loader._say_once.cache_clear()
    caplog.set_level("INFO")
    images = arrays(8)
    asked, given = (open_loader(images, settings(loader=name)).epoch(1) for name in ("torch", "auto"))
    assert torch.equal(next(asked).views, next(given).views)
    assert "loader: torch, not DALI, since these images are decoded already, which leaves it nothing to do" in (
        caplog.messages
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 1 or more, found 0"),
        ({"views": 0}, "views 1 or more"),
        ({"loader": "tape"}, "auto, dali or torch, found 'tape'"),
        ({"threads": 0}, "threads"),
        ({"rank": 2, "world_size": 2}, r"rank of 0\.\.1, found 2"),
        ({"max_damaged": 1.5}, "max_damaged"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        settings(**changes)


def test_settings_for_images_of_other_channels_are_refused_before_the_first_batch() -> None:
    with pytest.raises(DataError, match="expected images of 3 channels, as the normalisation has, found 1"):
        open_loader(arrays(3, channels=1), settings())
    two = settings(normalisation=Normalisation((0.0,) * 2, (1.0,) * 2))
    with pytest.raises(DataError, match=r"colours change in images of 1, 3 or 4 channels .*, found 2; set brightness"):
        open_loader(arrays(3, channels=2), two)


def test_a_loader_of_no_images_is_refused() -> None:
    with pytest.raises(DataError, match="expected images, found none"):
        open_loader(arrays(3), settings(), torch.tensor([], dtype=torch.int64))
