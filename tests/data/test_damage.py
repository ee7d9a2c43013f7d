"""Pictures that turn bad after they were verified: replaced by rule, counted, logged, and only so many."""

import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data.loading import RESIZED, arrays, by_id, encoded, photograph, picture_folder, settings

from ekgsearch.data.batching import LoaderSettings
from ekgsearch.data.damage import sound_reader
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.loader import open_loader
from ekgsearch.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")

JPEG = encoded(photograph(1, (200, 200)))
PNG = encoded(photograph(1, (200, 200)), "PNG")
BAD: dict[str, bytes | None] = {
    "gone": None,
    "empty": b"",
    "text": b"hello, I am a picture",
    "zeros": bytes(5000),
    "gif": encoded(photograph(1), "GIF"),
    "webp": encoded(photograph(1), "WEBP"),
    "bmp": encoded(photograph(1), "BMP"),
    "truncated jpeg": JPEG[: len(JPEG) // 2],
    "jpeg header only": JPEG[:12],
    "rotten jpeg": JPEG[: len(JPEG) // 2] + bytes(40) + JPEG[len(JPEG) // 2 + 40 :],
    "truncated png": PNG[: len(PNG) // 2],
    "zip": zlib.compress(b"hello" * 100),
    "another picture": encoded(photograph(7)),
}
"""Twelve kinds of file that are no sound picture any more, and a sound one that is not the one that was verified."""

BACKENDS = ("torch", "dali")


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest) -> Callable[..., LoaderSettings]:
    return lambda **changes: settings(loader=request.param, augmentation=RESIZED, **changes)


def opened(root: Path) -> EncodedImages:
    images = open_dataset("image_folder", root, image_size=24, num_threads=1).train
    assert isinstance(images, EncodedImages)
    return images


def spoil(images: EncodedImages, image_id: int, data: bytes | None) -> None:
    path = Path(images.source.where(images.images[image_id]))
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def test_no_kind_of_damage_kills_an_epoch(
    tmp_path: Path, make: Callable[..., LoaderSettings], caplog: pytest.LogCaptureFixture
) -> None:
    images = opened(picture_folder(tmp_path, train=3 * len(BAD)))
    sound = by_id(list(open_loader(images, make(drop_last=False)).epoch(2)))
    bad_ids = range(1, 3 * len(BAD), 3)
    for image_id, data in zip(bad_ids, BAD.values(), strict=True):
        spoil(images, image_id, data)
    loader = open_loader(images, make(drop_last=False, max_damaged=0.2, threads=2))
    with caplog.at_level(logging.WARNING):
        batches = list(loader.epoch(2))
    assert sum(batch.replaced for batch in batches) == len(BAD) == 13
    assert sum(len(batch.ids) for batch in batches) == len(images)
    found = torch.cat([batch.ids for batch in batches])
    assert sorted(found.tolist()) == sorted(i + 1 if i in bad_ids else i for i in range(len(images)))
    for batch in batches:
        assert torch.equal(batch.labels, images.labels[batch.ids])
        for image_id, views in zip(batch.ids.tolist(), batch.views, strict=True):
            assert torch.equal(views, sound[image_id])
    assert list(loader.damaged) == list(bad_ids)
    for image_id, reason in loader.damaged.items():
        assert images.images[image_id].path in reason
    assert sum("is damaged, the next sound one of its class" in line for line in caplog.messages) == len(BAD)
    assert sum(batch.replaced for batch in loader.epoch(3)) == len(BAD)


def test_the_next_sound_picture_of_the_class_stands_in(tmp_path: Path, make: Callable[..., LoaderSettings]) -> None:
    images = opened(picture_folder(tmp_path, train=4))
    for image_id in (3, 1, 2):
        spoil(images, image_id, b"")
    ids = torch.tensor([1, 2, 3, 0, 7])
    [batch] = open_loader(images, make(shuffle=False, max_damaged=1.0, batch_size=5), ids).epoch(1)
    assert batch.ids.tolist() == [0, 0, 0, 0, 7]
    assert batch.replaced == 3
    [lonely] = open_loader(images, make(shuffle=False, max_damaged=1.0), torch.tensor([0, 7])).epoch(1)
    assert lonely.replaced == 0
    with pytest.raises(DataError, match=r"class 0 has no sound picture left that could stand in for .*cat/01\.jpg"):
        list(open_loader(images, make(shuffle=False, max_damaged=1.0), torch.tensor([1, 2, 7])).epoch(1))


@pytest.mark.parametrize(("allowed", "damaged"), [(0.0, 1), (1e-4, 2), (0.2, 3)])
def test_more_damage_than_allowed_stops(
    tmp_path: Path, make: Callable[..., LoaderSettings], allowed: float, damaged: int
) -> None:
    images = opened(picture_folder(tmp_path, train=5))
    for image_id in range(damaged):
        spoil(images, image_id, b"text")
    with pytest.raises(DataError, match=rf"expected at most {damaged - 1} damaged pictures, found {damaged}; .*cat/0"):
        list(open_loader(images, make(max_damaged=allowed)).epoch(1))


def test_known_bad_files_are_left_out_before_the_epoch(tmp_path: Path, make: Callable[..., LoaderSettings]) -> None:
    root = picture_folder(tmp_path, train=6)
    clean = opened(root)
    unreadable = {kind: data for kind, data in BAD.items() if data and kind not in ("another picture", "rotten jpeg")}
    for number, data in enumerate(unreadable.values()):
        (root / "train" / "dog" / f"{number:02d}bad.jpg").write_bytes(data)
    images = open_dataset("image_folder", root, image_size=24, max_bad=len(unreadable), num_threads=2).train
    assert images.content_hash == clean.content_hash
    loader = open_loader(images, make(drop_last=False))
    assert sum(batch.replaced for batch in loader.epoch(1)) == 0
    assert loader.damaged == {}


def test_readers_outside_a_loader_follow_its_rule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = opened(picture_folder(tmp_path, train=4))
    expected = images.read(torch.tensor([0, 3, 3, 6]))
    spoil(images, 2, b"")
    spoil(images, 5, None)
    ids, read = torch.tensor([0, 2, 3, 5]), sound_reader(images, max_share=0.25)
    read_ids, read_bytes = [], images.read_bytes
    monkeypatch.setattr(images, "read_bytes", lambda image_id: (read_ids.append(image_id), read_bytes(image_id))[1])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(read(ids), expected)
        assert torch.equal(read(ids), expected)
    assert (read_ids.count(2), read_ids.count(5)) == (1, 1)
    assert sum("the next sound one of its class stands in" in line for line in caplog.messages) == 2
    assert torch.equal(sound_reader(images, torch.tensor([2, 0, 7]), max_share=1.0)(ids[1:2]), expected[:1])
    with pytest.raises(DataError, match="expected at most 1 damaged pictures, found 2"):
        sound_reader(images, max_share=0.0001)(ids)
    assert torch.equal(sound_reader(arrays(8), max_share=0.0)(ids), arrays(8).read(ids))


@pytest.mark.slow
def test_a_thousand_bad_files_are_survived(tmp_path: Path, make: Callable[..., LoaderSettings]) -> None:
    """Of 51,000 pictures every 51st turns bad between two epochs; files that are links of each other go together."""
    root, kinds = picture_folder(tmp_path, train=1), list(BAD.values())
    for name in ("cat", "dog"):
        original = root / "train" / name / "00.jpg"
        for number in range(1, 25_500):
            os.link(original, original.with_name(f"{number:05d}.jpg"))
    images = opened(root)
    loader = open_loader(images, make(batch_size=250, views=1, max_damaged=0.02, threads=2))
    assert sum(batch.replaced for batch in loader.epoch(1)) == 0
    bad_ids = range(0, len(images), 51)
    for position, image_id in enumerate(bad_ids):
        spoil(images, image_id, kinds[position % len(kinds)])
    batches = list(loader.epoch(2))
    assert sum(batch.replaced for batch in batches) == len(bad_ids) == 1000
    assert list(loader.damaged) == list(bad_ids)
    assert sum(len(batch.ids) for batch in batches) == 51_000
