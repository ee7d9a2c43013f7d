"""The classifier is found in every network of the zoo, and its input can be read in any sub-network."""

import pytest
import torch
from torch import nn

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.head import classifier
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.errors import NetworkError


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2", "vgg16"])
def test_the_classifier_maps_the_embeddings_to_the_logits(name: str) -> None:
    torch.manual_seed(0)
    network = build(zoo_factory(name, 10, (3, 32, 32))).eval()
    graph = analyse(network, (3, 32, 32))
    head = classifier(graph)
    group = next(group for group in graph.groups if head.path in {member.layer for member in group.consumers})
    sub = graph.full().replace(group.name, range(1, group.size))
    masked = MaskedNetwork(graph)
    kernels, masks = masked.weights(sub), masked.masks(sub)
    logits, values = masked.run(torch.randn(4, 3, 32, 32), kernels, masks, keep=frozenset({head.input}))
    embeddings = values[head.input]
    layer = network.get_submodule(head.path)
    assert embeddings.shape == (4, head.width)
    torch.testing.assert_close(nn.functional.linear(embeddings, kernels[head.path], layer.bias), logits)
    removed = next(member for member in group.consumers if member.layer == head.path).positions[0]
    assert not embeddings[:, removed].any()
    assert embeddings.any()


def test_a_network_without_a_linear_classifier_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NetworkError, match="linear layer"):
        classifier(analyse(network, (3, 8, 8)))
