"""Faster arithmetic gives nearly the same numbers, from fewer or smaller ones, and nothing of it is on by default."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import images, random_subnetwork

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels import fuse as fuse_module
from ekgsearch.channels.arithmetic import EXACT, Arithmetic
from ekgsearch.channels.fuse import fuse
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.sliced import SlicedNetwork
from ekgsearch.records import Subnetwork

SHAPE = (3, 16, 16)
LABELS = torch.tensor([0, 2, 3, 1, 1, 0, 2, 3])


@pytest.fixture(scope="module", params=["resnet20", "resnet18"])
def graph(request: pytest.FixtureRequest) -> ChannelGraph:
    return graph_of(request.param)


def graph_of(name: str) -> ChannelGraph:
    network = build(zoo_factory(name, 4, SHAPE), seed=1).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.8)
    return analyse(network, SHAPE)


def pixels() -> torch.Tensor:
    return images(SHAPE, batch=8).float()


@pytest.mark.parametrize(
    ("arithmetic", "tolerance"), [(Arithmetic(channels_last=True), 1e-3), (Arithmetic("bf16", True), 0.3)]
)
def test_logits_and_scores_stay_near_the_exact_ones(
    arithmetic: Arithmetic, tolerance: float, graph: ChannelGraph
) -> None:
    sub = random_subnetwork(graph, 1)
    exact = MaskedNetwork(graph).forward(pixels(), sub)
    network = SlicedNetwork(graph, 0.9, arithmetic)
    prepared = network.preparation.whole(sub)
    found = network.forward(pixels(), prepared)
    assert found.dtype == (torch.bfloat16 if arithmetic.precision == "bf16" else torch.float32)
    assert float((found.float() - exact).norm() / exact.norm()) < tolerance
    assert not torch.equal(found.float(), exact)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), LABELS)

    expected = MaskedNetwork(graph).scores(pixels(), loss, sub)
    scores = network.scores(pixels(), loss, prepared)[1]
    one, other = (torch.cat([values[group.name] for group in graph.groups]) for values in (scores, expected))
    assert float((one - other).norm() / other.norm()) < 2 * tolerance


def test_the_default_is_exact_and_gives_kernels_as_they_are(graph: ChannelGraph) -> None:
    assert Arithmetic() == EXACT
    kernel = torch.randn(4, 3, 3, 3)
    assert EXACT.kernel(kernel) is kernel


def test_channels_last_holds_through_the_network(graph: ChannelGraph) -> None:
    network = SlicedNetwork(graph, 0.9, Arithmetic(channels_last=True))
    prepared = network.preparation.whole(random_subnetwork(graph, 2))
    for tensor in prepared.tensors.values():
        assert tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2"])
def test_fused_steps_compute_what_the_single_ones_do(name: str) -> None:
    """In running mode the fused steps are not compiled: the same operations, the same bits."""
    graph = graph_of(name)
    sites = frozenset(site.node for site in graph.sites)
    program = fuse(graph.trace, sites)
    single = graph.trace.program
    assert len(program.steps) < len(single.steps)
    assert sites <= set(program.index)
    expected = single.output(single.values(pixels()))
    assert torch.equal(program.output(program.values(pixels())), expected)


def test_every_form_of_the_compiled_step_is_compiled_and_there_are_few(
    graph: ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of arithmetic in one process, all widths down to one channel, with and without gradients."""
    graphs: list[torch.fx.GraphModule] = []

    def counting(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(module)
        return module

    torch._dynamo.reset()
    monkeypatch.setattr(fuse_module, "_compiled", partial(fuse_module._compiled, counting))
    for arithmetic in (Arithmetic(compile=True), Arithmetic("bf16", channels_last=True, compile=True)):
        network = SlicedNetwork(graph, 0.9, arithmetic)
        for width in (100, 5, 2, 1):
            sub = Subnetwork.of({group.name: range(min(width, group.size)) for group in graph.groups})
            prepared = network.preparation.whole(sub)
            network.forward(pixels(), prepared)  # more forms than the compiler takes would be an error
            network.scores(pixels(), lambda logits: logits.float().logsumexp(1).mean(), prepared)
    torch._dynamo.reset()
    assert 4 <= len(graphs) <= 48


@pytest.mark.slow
def test_compiled_norms_stay_near_the_exact_ones(graph: ChannelGraph) -> None:
    sub = random_subnetwork(graph, 3)
    network = SlicedNetwork(graph, 0.9, Arithmetic(compile=True))
    found = network.forward(pixels(), network.preparation.whole(sub))
    torch.testing.assert_close(found, MaskedNetwork(graph).forward(pixels(), sub), rtol=1e-3, atol=1e-4)
