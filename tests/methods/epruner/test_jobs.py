"""The job files of EPruner: the layers that it prunes in each network, and what these networks cost, as published."""

from pathlib import Path

import pytest

from ekgsearch.channels.cost import conv_channels
from ekgsearch.jobfile import load_job
from ekgsearch.methods.epruner.section import EprunerSection
from ekgsearch.pipeline.network import open_network

JOBS = Path(__file__).parents[3] / "jobs"

CIFAR = {
    "vgg16": (13, 4224, 314.59, 14.73, "features.27"),
    "googlenet": (27, 7904, 1534.55, 6.17, None),
    "resnet56": (27, 2032, 127.62, 0.85, None),
    "resnet110": (54, 4048, 257.09, 1.73, None),
}
"""Pruned layers, channels of all convolutions, operations and parameters in millions, first layer with another beta."""

IMAGENET = {
    "resnet18": (8, "layer4.0.conv1"),
    "resnet34": (16, "layer4.1.conv1"),
    "resnet50": (32, "layer4.0.conv1"),
    "resnet101": (66, "layer3.21.conv1"),
    "resnet152": (100, "layer3.34.conv1"),
}


def section_of(job: object) -> EprunerSection:
    assert isinstance(job, EprunerSection)
    return job


@pytest.mark.parametrize("name", CIFAR)
def test_a_network_for_cifar_is_pruned_where_it_was_published(name: str) -> None:
    layers, channels, macs, params, late = CIFAR[name]
    job = load_job(JOBS / f"epruner_{name}_cifar10.yaml")
    opened = open_network(job, 10, (3, 32, 32))
    assert len(opened.groups) == layers
    assert conv_channels(opened.graph, opened.graph.full()) == channels
    assert opened.full_costs.macs / 1e6 == pytest.approx(macs, rel=5e-5)
    assert opened.full_costs.params / 1e6 == pytest.approx(params, abs=0.006)
    first = section_of(job.search).late_from
    assert (None if first is None else opened.groups[first].name) == late


@pytest.mark.parametrize("name", IMAGENET)
def test_a_network_for_imagenet_is_pruned_where_it_was_published(name: str) -> None:
    """At 64 pixels: which channels belong together does not depend on the size of the images."""
    layers, late = IMAGENET[name]
    job = load_job(JOBS / f"epruner_{name}_imagenet.yaml", ["net.weights=null"])
    opened = open_network(job, 1000, (3, 64, 64))
    assert len(opened.groups) == layers
    inner = ("conv1",) if name in ("resnet18", "resnet34") else ("conv1", "conv2")
    assert all(group.name.startswith("layer") and group.name.endswith(inner) for group in opened.groups)
    first = section_of(job.search).late_from
    assert first is not None
    assert opened.groups[first].name == late
