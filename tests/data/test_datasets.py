import hashlib
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from ekgsearch.data.datasets import NAMES, ArrayImages, open_dataset
from ekgsearch.data.digits import enlarge
from ekgsearch.data.limit import Limit
from ekgsearch.data.statistics import mean_and_deviation
from ekgsearch.errors import DataError


def test_digits_are_stratified_and_fixed() -> None:
    digits = open_dataset("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert (digits.num_classes, digits.image_shape) == (10, (3, 16, 16))
    assert digits.test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert open_dataset("digits").content_hash == digits.content_hash == DIGITS_HASH
    assert open_dataset("digits", image_size=32).content_hash != digits.content_hash


DIGITS_HASH = "eccbfb89e3a5f72dc14077153c6496227c6f443b43c03eb3a949b56b670ceb01"
"""Recorded once: the split and the pixels are the same on every machine."""


@pytest.mark.parametrize("threads", [1, 2])
def test_digits_have_exactly_the_statistics_they_state_with_any_number_of_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    digits = open_dataset("digits")
    assert digits.mean == (77.90996052974948,) * 3
    assert digits.std == (81.25658159840471,) * 3


def test_digits_may_have_one_channel() -> None:
    grey, colour = open_dataset("digits", channels=1), open_dataset("digits")
    assert grey.image_shape == (1, 16, 16)
    assert (grey.mean, grey.std) == (colour.mean[:1], colour.std[:1])
    ids = torch.arange(9)
    assert torch.equal(grey.train.read(ids).expand(-1, 3, -1, -1), colour.train.read(ids))


def test_statistics_of_pixels_are_rounded_once() -> None:
    pixels = torch.randint(0, 256, (7, 5, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    levels = pixels.flatten().tolist()
    assert mean_and_deviation(pixels) == (sum(levels) / len(levels), statistics.pstdev(levels))
    assert mean_and_deviation(torch.full((2, 2), 255, dtype=torch.uint8)) == (255.0, 0.0)


@pytest.mark.parametrize("size", [8, 11, 16, 32])
def test_digits_are_enlarged_as_by_bilinear_interpolation(size: int) -> None:
    levels = np.random.default_rng(0).integers(0, 17, (5, 8, 8))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(levels * 255 / 16)[:, None], (size, size), mode="bilinear", align_corners=False
    )[:, 0]
    assert np.abs(enlarge(levels, size) - expected.numpy()).max() <= 0.5 + 1e-9


def test_reading_gives_the_asked_images_in_the_asked_order() -> None:
    images = torch.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2).to(torch.uint8)
    held = ArrayImages(images, torch.tensor([0, 1, 0, 1, 1]))
    assert torch.equal(held.read(torch.tensor([3, 0, 3])), images[[3, 0, 3]])
    part = held.take(torch.tensor([4, 1]))
    assert torch.equal(part.read(torch.arange(2)), images[[4, 1]])
    assert part.labels.tolist() == [1, 1]
    assert len(part) == 2


def test_the_content_hash_changes_with_any_pixel_label_or_order() -> None:
    images, labels = torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2])
    other_pixel = images.clone()
    other_pixel[2, 0, 1, 1] = 1
    variants = [
        ArrayImages(images, labels),
        ArrayImages(other_pixel, labels),
        ArrayImages(other_pixel.flip(0), labels),
        ArrayImages(images, torch.tensor([0, 2, 1])),
        ArrayImages(images.reshape(3, 3, 1, 4), labels),
    ]
    assert len({variant.content_hash for variant in variants}) == 5
    assert variants[0].content_hash == ArrayImages(images.clone(), labels.clone()).content_hash


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 0, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(N, C, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"shape \(2,\)"),
    ],
)
def test_arrays_of_another_kind_are_refused(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayImages(images, labels)


def test_a_limit_keeps_the_first_images_of_each_class() -> None:
    whole, part = open_dataset("digits"), open_dataset("digits", limit=Limit(images=7))
    assert part.train.labels.bincount().tolist() == [7] * 10
    assert part.test.labels.bincount().tolist() == [7] * 10
    fives = torch.nonzero(whole.train.labels == 5).flatten()[:7]
    kept = torch.nonzero(part.train.labels == 5).flatten()
    assert torch.equal(part.train.read(kept), whole.train.read(fives))
    assert part.content_hash != whole.content_hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, f"one of {', '.join(NAMES)}; found 'mnist'"),
        ({"name": "cifar10", "image_size": 64}, "32x32"),
        ({"name": "image_folder"}, "holds train and val"),
        ({"name": "digits", "image_size": 7}, "at least 8"),
        ({"name": "digits", "channels": 4}, "data.channels must be 1, or 3 equal ones, found 4"),
        ({"name": "cifar10", "channels": 1}, "images have 3 channels, found data.channels 1; leave it out"),
        ({"name": "image_folder", "channels": 2, "root": Path()}, r"data.channels: .* 4 \(RGBA\) channels, found 2"),
        ({"name": "parquet", "channels": 5, "root": Path()}, r"data.channels: .* 4 \(RGBA\) channels, found 5"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(**arguments)  # type: ignore[arg-type]


def test_cifar10_pixels_are_the_published_ones_in_the_published_order(data_dir: Path) -> None:
    dataset = open_dataset("cifar10", data_dir, download=False)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    ids = torch.arange(10_000)
    rows = torch.cat([dataset.test.labels[:, None].to(torch.uint8), dataset.test.read(ids).flatten(1)], dim=1)
    # Checksum of the published binary file test_batch.bin: a label byte, then 3,072 planar pixels.
    assert hashlib.md5(rows.numpy().tobytes()).hexdigest() == "803d5f7f4d78ea53de84dbe85f74fb6d"
    assert dataset.train.labels.bincount().tolist() == [5000] * 10
