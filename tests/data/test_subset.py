import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.subset import batches, permutation, split_search_subset
from ekgsearch.errors import DataError


def test_cifar10_subsets_equal_those_of_the_published_program(data_dir: Path) -> None:
    labels = open_dataset("cifar10", data_dir, download=False).train.labels
    search, warmup = split_search_subset(labels)
    oracle = json.loads((data_dir / "oracle" / "indices.json").read_text())
    assert search.tolist() == oracle["d_val"]
    assert warmup.tolist() == oracle["d_subset"]


def test_subsets_take_the_last_and_the_first_images_of_each_class_and_are_disjoint() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(3), 20)))
    search, warmup = split_search_subset(labels, search_per_class=4, warmup_per_class=16)
    assert not set(search.tolist()) & set(warmup.tolist())
    for label in range(3):
        members = torch.nonzero(labels == label).flatten().tolist()
        assert sorted(i for i in search.tolist() if labels[i] == label) == members[-4:]
        assert sorted(i for i in warmup.tolist() if labels[i] == label) == members[:16]
    assert torch.equal(search, split_search_subset(labels, search_per_class=4, warmup_per_class=16)[0])
    assert not torch.equal(search, split_search_subset(labels, search_per_class=4, warmup_per_class=16, seed=2)[0])


def test_a_class_with_too_few_images_is_named_with_both_numbers() -> None:
    labels = torch.tensor([0] * 12 + [1] * 9)
    with pytest.raises(DataError, match="class 1 has 9 training images, 10 are needed"):
        split_search_subset(labels, search_per_class=4, warmup_per_class=6)
    split_search_subset(labels, search_per_class=3, warmup_per_class=6)


def test_a_class_without_any_image_is_named() -> None:
    with pytest.raises(DataError, match="class 1 has 0 training images"):
        split_search_subset(torch.tensor([0, 0, 2, 2]), search_per_class=1, warmup_per_class=0)


def test_a_search_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        split_search_subset(torch.tensor([0, 1]), search_per_class=0)
    with pytest.raises(DataError, match="no training images"):
        split_search_subset(torch.tensor([], dtype=torch.int64))


def test_batches_keep_the_order_and_the_short_end() -> None:
    assert [batch.tolist() for batch in batches(torch.tensor([5, 4, 3, 2, 1]), 2)] == [[5, 4], [3, 2], [1]]
    with pytest.raises(DataError, match="batch size 0"):
        batches(torch.arange(3), 0)


def test_a_permutation_is_complete_and_fixed_by_its_seed_and_epoch() -> None:
    order = permutation(5000, 3, 1)
    assert sorted(order.tolist()) == list(range(5000))
    assert torch.equal(order, permutation(5000, 3, 1))
    for other in (permutation(5000, 3, 2), permutation(5000, 4, 1)):
        assert (order == other).sum() < 20
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05


def test_a_permutation_does_not_change_between_versions() -> None:
    assert permutation(8, 0, 0).tolist() == FIRST_PERMUTATION


FIRST_PERMUTATION = [2, 3, 0, 7, 5, 6, 1, 4]
"""Recorded once: stored memory banks and resumed runs rely on it."""
