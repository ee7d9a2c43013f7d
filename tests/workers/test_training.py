"""Where the images of a training lie."""

import pytest
import torch
from data.loading import arrays

from ekgsearch.data.images import ArrayImages
from ekgsearch.workers.training import _held


def test_only_a_gpu_takes_the_images_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images, there = arrays(4), arrays(4)
    monkeypatch.setattr(ArrayImages, "to", lambda self, device: there)
    assert _held(images, torch.device("cpu")) is images
    assert _held(images, torch.device("cuda:1")) is there


@pytest.mark.gpu
def test_images_on_a_gpu_keep_their_content_hash() -> None:
    held = _held(arrays(4), torch.device("cuda"))
    assert held.read(torch.tensor([1])).is_cuda
    assert held.content_hash == arrays(4).content_hash
