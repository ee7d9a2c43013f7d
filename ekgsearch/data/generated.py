"""Generated pictures: a coloured gradient for each class under noise, where real data are not at hand."""

import torch
from torch import Tensor

from ekgsearch.data.draws import uniforms
from ekgsearch.data.folder import picture_statistics
from ekgsearch.data.images import ArrayImages, Dataset
from ekgsearch.data.limit import ALL, Limit
from ekgsearch.errors import DataError

DEFAULT_CLASSES = 10
DEFAULT_SIZE = 32
"""Height and width in pixels, unless asked otherwise."""

TRAIN_PER_CLASS, TEST_PER_CLASS = 320, 32
"""Images of each class: enough for the default subsets of warm-up and search."""

_GRADIENTS, _TRAIN, _TEST = 1, 2, 3
"""What random numbers are for."""

_NOISE = 64.0
"""Range of the noise, pixel units."""


def open_generated(
    num_classes: int | None = None, image_size: int | None = None, *, channels: int = 3, limit: Limit = ALL
) -> Dataset:
    """Make a training set and a test set; every pixel is a function of class, image and place alone.

    Args:
        num_classes: number of classes; None means 10.
        image_size: height and width in pixels; None means 32.
        channels: 1, 3 or 4.
        limit: which images are made.

    Raises:
        DataError: pictures of so many channels have no usual statistics.
    """
    classes = DEFAULT_CLASSES if num_classes is None else num_classes
    size = DEFAULT_SIZE if image_size is None else image_size
    if classes < 1 or size < 1:
        raise DataError(f"generated: expected at least 1 class and images of at least 1 pixel, found {classes}, {size}")
    mean, std = picture_statistics(channels)
    shape = (channels, size, size)
    made = torch.arange(classes)[: limit.classes]
    gradients = _gradients(made, shape)
    train, test = (
        _images(gradients, per_class if limit.images is None else min(per_class, limit.images), split)
        for per_class, split in ((TRAIN_PER_CLASS, _TRAIN), (TEST_PER_CLASS, _TEST))
    )
    return Dataset("generated", train, test, classes, shape, mean, std, tuple(map(str, range(classes))))


def _gradients(classes: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The picture of each class without noise, (classes, C, H, W), float64, in 0..255: linear from corner to corner."""
    channels, height, width = shape
    corners = 255.0 * uniforms(classes, 3 * channels, _GRADIENTS).reshape(-1, channels, 3, 1, 1)
    down = torch.arange(height, dtype=torch.float64).reshape(-1, 1) / height
    right = torch.arange(width, dtype=torch.float64) / width
    top_left, bottom, top_right = corners.unbind(2)
    return (top_left + (bottom - top_left) * down / 2 + (top_right - top_left) * right / 2).clamp(0, 255)


def _images(gradients: Tensor, per_class: int, split: int) -> ArrayImages:
    """So many noisy pictures of each class, class by class."""
    labels = torch.arange(len(gradients)).repeat_interleave(per_class)
    pixels = torch.empty(len(labels), *gradients.shape[1:], dtype=torch.uint8)
    for label, gradient in enumerate(gradients):
        ids = torch.arange(per_class) + label * TRAIN_PER_CLASS  # the same picture under any limit
        noise = _NOISE * (uniforms(ids, gradient.numel(), split).reshape(per_class, *gradient.shape) - 0.5)
        pixels[labels == label] = (gradient + noise).round().clamp(0, 255).to(torch.uint8)
    return ArrayImages(pixels, labels)
