"""A ResNet-20 of four classes with random norms, three batches, and the search that they lead to."""

import pytest
import torch
from local_evaluator import SETTINGS, budget_of, evaluator_of
from torch import nn

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.methods.base import Decision
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.methods.evaluate import SearchBatch


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.set_num_threads(1)
    network = build(zoo_factory("resnet20", 4, (3, 8, 8)), seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> ChannelGraph:
    return analyse(network, (3, 8, 8))


@pytest.fixture(scope="module")
def batches() -> list[SearchBatch]:
    generator = torch.Generator().manual_seed(2)
    sizes = [16, 16, 9]
    return [
        SearchBatch(
            index,
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(0, 4, (size,), generator=generator),
        )
        for index, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def made(graph: ChannelGraph, batches: list[SearchBatch]) -> list[Decision]:
    search = EkgSearch(graph, evaluator_of(graph, batches, [[0, 1, 2]]), budget_of(graph), SETTINGS)
    return list(search.run())
