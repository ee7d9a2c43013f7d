"""Handwritten digits that come with scikit-learn: 1,797 images of 8x8 pixels, ten classes, no download."""

import numpy as np
import torch

from ekgsearch.data.images import ArrayImages, Dataset
from ekgsearch.data.statistics import mean_and_deviation
from ekgsearch.errors import DataError

DEFAULT_SIZE = 16
"""Height and width in pixels that the 8x8 images are enlarged to, unless asked otherwise."""

_NUM_TEST = 360
_SPLIT_SEED = 0
_LEVELS = 16


def open_digits(image_size: int | None = None, *, channels: int = 3) -> Dataset:
    """Open the digits, enlarged, with a fixed test set of 360 images that has the classes of the whole in proportion.

    Args:
        image_size: height and width in pixels, at least 8; None means 16.
        channels: 1, or 3 equal ones.

    Raises:
        DataError: the size is smaller than the images are, or there are other numbers of channels.
    """
    from sklearn.datasets import load_digits  # only here: it takes a second to import

    size = DEFAULT_SIZE if image_size is None else image_size
    if size < 8:
        raise DataError(f"digits: image_size must be at least 8 pixels, found {size}")
    if channels not in (1, 3):
        raise DataError(f"digits: data.channels must be 1, or 3 equal ones, found {channels}")
    grey, labels = load_digits(return_X_y=True)
    pixels = enlarge(grey.reshape(-1, 8, 8).astype(np.int64), size)
    images = torch.from_numpy(np.repeat(pixels[:, None], channels, axis=1))
    classes = torch.from_numpy(labels.astype(np.int64))
    is_test = torch.from_numpy(_test_mask(labels))
    train, test = (ArrayImages(images[mask], classes[mask]) for mask in (~is_test, is_test))
    mean, std = mean_and_deviation(train.images[:, 0])
    names = tuple(map(str, range(10)))
    return Dataset("digits", train, test, 10, (channels, size, size), (mean,) * channels, (std,) * channels, names)


def enlarge(levels: np.ndarray, size: int) -> np.ndarray:
    """Interpolate 8x8 images bilinearly, in integers only, so that every machine gets the same bytes.

    Args:
        levels: grey levels (N, 8, 8), 0..16, int64.
        size: height and width of the result.

    Returns:
        Pixels (N, size, size), 0..255, uint8; pixel centres are aligned as in `interpolate(align_corners=False)`.
    """
    scale = 2 * size
    position = np.clip((2 * np.arange(size) + 1) * 8 - size, 0, 7 * scale)
    lower, fraction = position // scale, position % scale
    upper = np.minimum(lower + 1, 7)
    rows = levels[:, lower] * (scale - fraction)[:, None] + levels[:, upper] * fraction[:, None]
    total = rows[:, :, lower] * (scale - fraction) + rows[:, :, upper] * fraction
    denominator = _LEVELS * scale * scale
    return ((total * 255 + denominator // 2) // denominator).astype(np.uint8)


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """Choose the test images: of each class its share, the fractions going to the classes with the largest ones."""
    counts = np.bincount(labels, minlength=10)
    shares = counts * _NUM_TEST
    quotas = shares // len(labels)
    by_remainder = np.argsort(-(shares % len(labels)), kind="stable")
    quotas[by_remainder[: _NUM_TEST - quotas.sum()]] += 1
    generator = np.random.default_rng(_SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(labels == label)
        mask[generator.permutation(members)[:quota]] = True
    return mask
