"""Which training images the search and its warm-up use, in which order images are visited, and by which process."""

import numpy as np
import torch
from torch import Tensor

from ekgsearch.data.draws import words
from ekgsearch.errors import DataError


def split_search_subset(
    labels: Tensor, *, search_per_class: int = 32, warmup_per_class: int = 256, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Choose the search subset and the warm-up subset from the training images.

    The search subset takes the last images of each class, backwards; the warm-up subset the first ones. Each is
    concatenated over the classes and shuffled once, by numpy's legacy generator started afresh from the seed, as in
    the code published with EKG (arXiv 2203.02651).

    Args:
        labels: class indices (N,) of the training images, int64.
        search_per_class: images per class of the search subset, at least 1.
        warmup_per_class: images per class of the warm-up subset; 0 means none.
        seed: of both shuffles.

    Returns:
        Ids of the search subset and of the warm-up subset, int64, disjoint, in the order to be used.

    Raises:
        DataError: a class has too few images.
    """
    if search_per_class < 1 or warmup_per_class < 0:
        raise DataError(
            f"the search subset needs at least 1 image per class and the warm-up at least 0, "
            f"found {search_per_class} and {warmup_per_class}"
        )
    needed = search_per_class + warmup_per_class
    search: list[np.ndarray] = []
    warmup: list[np.ndarray] = []
    for label, count in enumerate(torch.bincount(labels.cpu()).tolist()):
        if count < needed:
            raise DataError(
                f"class {label} has {count} training images, {needed} are needed ({search_per_class} for the search "
                f"and {warmup_per_class} for its warm-up); lower search.images_per_class or "
                "warmup.images_per_class"
            )
        members = torch.nonzero(labels.cpu() == label).flatten().numpy()
        search.append(members[::-1][:search_per_class])
        warmup.append(members[:warmup_per_class])
    if not search:
        raise DataError("there are no training images to choose a search subset from")
    return _shuffled(search, seed), _shuffled(warmup, seed)


def _shuffled(parts: list[np.ndarray], seed: int) -> Tensor:
    ids = np.concatenate(parts)
    np.random.RandomState(seed).shuffle(ids)
    return torch.from_numpy(ids)


def batches(ids: Tensor, size: int) -> list[Tensor]:
    """Cut ids (N,) into batches in order; the last one may be smaller."""
    if size < 1:
        raise DataError(f"a batch must have at least 1 image, found batch size {size}")
    return list(torch.split(ids, size))


def permutation(num: int, seed: int, epoch: int) -> Tensor:
    """Order 0 .. num-1 at random: a function of the three numbers alone, equal on every machine.

    Returns:
        Ids (num,), int64.
    """
    return torch.argsort(words(torch.arange(num), 1, seed, epoch).flatten(), stable=True)


def share(count: int, rank: int, size: int) -> slice:
    """Contiguous part of `count` items that process `rank` of `size` takes; parts differ by at most one item."""
    return slice(rank * count // size, (rank + 1) * count // size)
