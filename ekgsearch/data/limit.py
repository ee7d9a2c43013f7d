"""A part of a data set: the first images of the first classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ekgsearch.errors import DataError


@dataclass(frozen=True, slots=True)
class Limit:
    """Which images of a split are opened.

    Attributes:
        classes: the first so many classes, by their labels; None for all.
        images: the first so many images of each class; None for all.
    """

    classes: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        """Refuse a part without images.

        Raises:
            DataError: a number is below 1.
        """
        if min(self.classes or 1, self.images or 1) < 1 or 0 in (self.classes, self.images):
            raise DataError(f"limit must name at least one class and one image of each, found {self}")

    def ids(self, labels: Tensor) -> Tensor:
        """Ids (M,), int64, ascending, of the images in the part.

        Args:
            labels: class indices (N,) of all images, int64.
        """
        order = torch.argsort(labels, stable=True)
        sizes = torch.bincount(labels)
        starts = torch.cumsum(sizes, 0) - sizes
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(labels)) - starts[labels[order]]
        is_in = rank < (len(labels) if self.images is None else self.images)
        if self.classes is not None:
            is_in &= labels < self.classes
        return torch.nonzero(is_in).flatten()


ALL = Limit()
"""The whole data set."""
