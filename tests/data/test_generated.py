"""Generated pictures: the same everywhere, of the shape that is asked for, and such that a network can learn them."""

import pytest
import torch

from ekgsearch.data.datasets import describe_dataset, open_dataset
from ekgsearch.data.limit import Limit
from ekgsearch.errors import DataError


def test_they_have_the_shape_that_is_asked_for() -> None:
    dataset = open_dataset("generated", image_size=9, channels=1, classes=3)
    assert describe_dataset("generated", image_size=9, channels=1, classes=3) == (3, (1, 9, 9))
    assert (dataset.num_classes, dataset.image_shape, len(dataset.mean), len(dataset.std)) == (3, (1, 9, 9), 1, 1)
    assert dataset.train.labels.bincount().tolist() == [320] * 3
    assert dataset.test.labels.bincount().tolist() == [32] * 3
    assert tuple(dataset.train.read(torch.tensor([5, 700])).shape) == (2, 1, 9, 9)


def test_a_picture_is_the_same_under_any_limit_and_no_test_picture_is_a_training_picture() -> None:
    whole = open_dataset("generated", image_size=8, classes=4)
    part = open_dataset("generated", image_size=8, classes=4, limit=Limit(classes=3, images=2))
    assert part.num_classes == 4
    assert part.train.labels.tolist() == part.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    kept = torch.tensor([0, 1, 320, 321, 640, 641])
    assert torch.equal(part.train.read(torch.arange(6)), whole.train.read(kept))
    assert not (part.train.read(torch.arange(6)) == part.test.read(torch.arange(6))).flatten(1).all(1).any()
    again = open_dataset("generated", image_size=8, classes=4)
    assert again.content_hash == whole.content_hash != part.content_hash


def test_classes_can_be_told_apart() -> None:
    dataset = open_dataset("generated", image_size=16, limit=Limit(images=20))
    train, test = (
        images.read(torch.arange(len(images))).double().flatten(1) for images in (dataset.train, dataset.test)
    )
    means = torch.stack([train[dataset.train.labels == label].mean(0) for label in range(10)])
    found = torch.cdist(test, means).argmin(1)
    assert float((found == dataset.test.labels).double().mean()) > 0.9
    assert float((train[0] - train[1]).abs().mean()) > 5  # images of a class are no copies


@pytest.mark.parametrize("limit", [{"classes": 0}, {"images": 0}, {"classes": -1, "images": 2}])
def test_a_part_without_images_is_refused(limit: dict[str, int]) -> None:
    with pytest.raises(DataError, match="at least one class and one image"):
        Limit(**limit)
