"""Published weights on the real test images: network, padding, pixels and normalisation must all be right at once."""

from pathlib import Path

import pytest
import torch

from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.sidecar import read_sidecar
from ekgsearch.artefact.weights import load_weights
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.folder import folder_images
from ekgsearch.data.images import ImageSet
from ekgsearch.data.index import index_images
from ekgsearch.data.subset import batches
from ekgsearch.data.views import Normalisation


def num_correct(weights: Path, images: ImageSet, batch_size: int = 125) -> int:
    """Images whose largest logit is the label's, in running mode."""
    sidecar = read_sidecar(weights)
    assert sidecar.net is not None
    assert sidecar.normalisation is not None
    network = build(sidecar.net)
    load_weights(network, weights)
    network.eval().to(memory_format=torch.channels_last)
    normalisation = Normalisation(*sidecar.normalisation)
    correct = 0
    with torch.inference_mode():
        for ids in batches(torch.arange(len(images)), batch_size):
            inputs = normalisation(images.read(ids)).contiguous(memory_format=torch.channels_last)
            correct += int((network(inputs).argmax(1) == images.labels[ids]).sum())
    return correct


def test_resnet20_has_exactly_its_published_errors_on_cifar10(data_dir: Path) -> None:
    test = open_dataset("cifar10", data_dir, download=False).test
    assert num_correct(data_dir / "weights" / "resnet20_cifar10_optionA.safetensors", test) == 9173


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "expected"),
    [("resnet56_cifar10_ekg", 9384), ("resnet32_cifar10_optionA", 9263), ("resnet56_cifar10_optionA", 9339)],
)
def test_deeper_networks_have_exactly_their_published_errors_on_cifar10(
    data_dir: Path, stem: str, expected: int
) -> None:
    test = open_dataset("cifar10", data_dir, download=False).test
    assert num_correct(data_dir / "weights" / f"{stem}.safetensors", test) == expected


@pytest.mark.slow
def test_mobilenet_v2_classifies_the_imagenet_sample_as_its_sidecar_says(data_dir: Path) -> None:
    index = index_images(data_dir / "imagenet-sample" / "val", num_threads=2)
    assert (len(index.class_names), len(index.images), index.bad) == (1000, 1000, ())
    weights = data_dir / "weights" / "mobilenet_v2_imagenet_dequantised.safetensors"
    assert num_correct(weights, folder_images(index, 224, num_threads=2), 50) == 862
