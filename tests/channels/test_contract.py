"""What holds for every network: channel groups, masked, fast and slim networks, scores, candidates, state, costs."""

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from networks import NETWORKS, SHAPE, images, make, one_left, random_subnetwork
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.norm import norm_mode
from ekgsearch.channels.prepare import Prepared
from ekgsearch.channels.sliced import SlicedNetwork
from ekgsearch.channels.slim import slim
from ekgsearch.channels.widen import widen
from ekgsearch.records import NormMode, Subnetwork

EXACT = 1e-10
"""Largest difference in float64, relative to the largest output: the sums have other orders."""

MODES: tuple[NormMode, NormMode] = ("batch", "running")


def tensors_of(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def loss(output: Any) -> torch.Tensor:
    """A loss that no output is symmetric in, of whatever numbers a network returns."""
    numbers = [leaf for leaf in tensors_of(output) if leaf.is_floating_point()]
    terms = [leaf * torch.linspace(-1.0, 1.0, leaf.numel(), dtype=leaf.dtype).view(leaf.shape) for leaf in numbers]
    return torch.stack([term.square().sum() for term in terms]).sum()


def same_bits(found: Any, expected: Any) -> bool:
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def assert_close(found: Any, expected: Any, what: str) -> None:
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert one.shape == other.shape, what
        if one.is_floating_point():
            assert float((one - other).abs().max()) <= EXACT * float(other.abs().max()), what
        else:
            assert torch.equal(one, other), what


def run_slim(network: nn.Module, mode: NormMode) -> Any:
    with norm_mode(network, mode), torch.no_grad():
        return network(images())


@pytest.fixture(params=sorted(NETWORKS), scope="module")
def graph(request: pytest.FixtureRequest) -> ChannelGraph:
    """Each network in turn, analysed once; the tests must leave it as it was."""
    torch.set_num_threads(1)
    return analyse(make(NETWORKS[request.param][0]), SHAPE)


@pytest.fixture
def sizes(request: pytest.FixtureRequest, graph: ChannelGraph) -> tuple[int, ...]:
    return NETWORKS[request.node.callspec.params["graph"]][1]


def subnetworks(graph: ChannelGraph) -> list[Subnetwork]:
    """The whole network, random ones, and each channel group alone cut to one channel."""
    ones = [one_left(graph, group.name, seed) for seed, group in enumerate(graph.groups)]
    return [graph.full(), *(random_subnetwork(graph, seed) for seed in range(3)), *ones]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_it_keeps_the_contract(graph: ChannelGraph, sizes: tuple[int, ...]) -> None:
    """One test, so that a network is analysed once; every assertion says which part of the contract is broken."""
    before = {name: tensor.clone() for name, tensor in graph.network.state_dict().items()}
    assert tuple(group.size for group in graph.groups) == sizes
    assert all(len(group.frozen.split()) >= 2 for group in graph.frozen), "a frozen group tells why"
    _masked_is_the_network(graph)
    for mode in MODES:
        _slim_is_masked(graph, mode)
        _fast_is_masked(graph, mode)
    _scores_are_those_of_the_masked_network(graph)
    for below in (1.0, 0.6, 0.0):
        _candidates_branch_off(graph, below)
    _state_follows_the_original(graph)
    _slim_weights_find_their_way_back(graph)
    _costs_are_counted(graph)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.network.state_dict().items()), "was changed"


def _masked_is_the_network(graph: ChannelGraph) -> None:
    with torch.no_grad():
        expected = graph.network.eval()(images())
    assert_close(MaskedNetwork(graph)(images(), graph.full(), norm_mode="running"), expected, "masked")


def _slim_is_masked(graph: ChannelGraph, mode: NormMode) -> None:
    for sub in subnetworks(graph):
        assert_close(
            run_slim(slim(graph, sub), mode), MaskedNetwork(graph)(images(), sub, norm_mode=mode), f"slim {mode}"
        )


def _fast_is_masked(graph: ChannelGraph, mode: NormMode) -> None:
    masked, x = MaskedNetwork(graph), images()
    for below in (1.0, 0.6, 0.0):
        network = SlicedNetwork(graph, below)
        for sub in subnetworks(graph):
            expected = masked.forward(x, sub, norm_mode=mode)
            found = network.forward(x, network.preparation.whole(sub), norm_mode=mode)
            if below == 0.0:
                assert same_bits(found, expected), f"fast without slicing, {mode}"
            else:
                assert_close(found, expected, f"fast below {below}, {mode}")


def _scores_are_those_of_the_masked_network(graph: ChannelGraph) -> None:
    x = images()
    for sub in (graph.full(), random_subnetwork(graph, 6)):
        expected = MaskedNetwork(graph).scores(x, loss, sub)
        for below in (0.0, 0.6, 1.0):
            network = SlicedNetwork(graph, below)
            _, found, _ = network.scores(x, loss, network.preparation.whole(sub))
            assert set(found) == set(expected) == set(sub.names)
            for name, kept in sub.kept:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
                removed = sorted(set(range(len(found[name]))) - set(kept))
                assert not found[name][removed].any(), "a removed channel has a score"
            assert not graph.groups or any(bool(scores.any()) for scores in found.values()), "all scores are 0"
    copy.deepcopy(graph.network)  # which tensors that hooks computed with gradients would not allow


def _candidates_of(network: SlicedNetwork, current: Prepared) -> list[tuple[str, Prepared]]:
    sub = current.subnetwork
    return [
        (group.name, network.preparation.narrowed(current, sub.replace(group.name, sub[group.name][:1]), group.name))
        for group in network.graph.groups
    ]


def _candidates_branch_off(graph: ChannelGraph, below: float) -> None:
    """From the images or from what scoring left, with the bits of whole runs; nothing that they share is written."""
    network, x = SlicedNetwork(graph, below), images()
    current = network.preparation.whole(random_subnetwork(graph, 4))
    candidates = _candidates_of(network, current)
    tensors, pixels = {key: tensor.clone() for key, tensor in current.tensors.items()}, x.clone()
    walk = network.scores(x, loss, current)[2]
    kept = {index: {key: copy.deepcopy(value) for key, value in found.items()} for index, found in walk.before.items()}
    outputs = network.branches(x, current, candidates)
    from_scores = network.branches(x, current, candidates, walk=walk)
    for (_, candidate), output, other in zip(candidates, outputs, from_scores, strict=True):
        whole = network.forward(x, network.preparation.whole(candidate.subnetwork))
        assert same_bits(output, whole), "a candidate that branches off"
        assert_close(other, whole, "a candidate that starts from what scoring left")
    for index, found in walk.before.items():
        assert all(same_bits(value, kept[index][key]) for key, value in found.items()), "a shared value was written"
    assert torch.equal(x, pixels), "the images were written"
    assert all(torch.equal(current.tensors[key], tensor) for key, tensor in tensors.items()), "a kernel was written"


def _state_follows_the_original(graph: ChannelGraph) -> None:
    whole, state = slim(graph, graph.full()), graph.network.state_dict()
    own = whole.state_dict()
    assert {name.split(".")[0] for name in set(state) - set(own)} <= {"dead", "scale"}, (
        "what no forward reads is left out"
    )
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items()), "values of a whole slim network"
    parameters = {name: tensor for name, tensor in graph.network.named_parameters() if name in own}
    assert _numbers(whole.parameters()) == _numbers(parameters.values()), "a buffer became a parameter, or the reverse"
    for tensor in whole.state_dict().values():
        tensor.zero_()
    whole.load_state_dict(state)
    assert same_bits(run_slim(whole, "running"), run_slim(slim(graph, graph.full()), "running")), "loaded state"
    sub = random_subnetwork(graph, 2)
    small, fresh = slim(graph, sub), slim(graph, sub, preserve_norm=False)
    fresh.load_state_dict(small.state_dict())
    assert same_bits(run_slim(fresh, "running"), run_slim(small, "running")), "state of a slim network"


def _slim_weights_find_their_way_back(graph: ChannelGraph) -> None:
    """Trained slim weights, put back into the unpruned network, are what a cut of it finds, and mask to the same."""
    sub = random_subnetwork(graph, 2)
    trained = slim(graph, sub)
    with torch.no_grad():
        for number, weight in enumerate(trained.parameters()):
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)).to(weight)
    wide = copy.deepcopy(graph.network)
    wide.load_state_dict(widen(graph, sub, trained.state_dict(), SHAPE))
    again = slim(analyse(wide, SHAPE), sub)
    assert_close(run_slim(again, "running"), run_slim(trained, "running"), "slim weights put back")


def _costs_are_counted(graph: ChannelGraph) -> None:
    for sub in (graph.full(), random_subnetwork(graph, 1)):
        small = slim(graph, sub).eval()
        # gradients and plain products, because the counter does not see into fused attention
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            small(images(batch=3))
        found = cost(graph, sub)
        assert 6 * found.macs == counter.get_total_flops(), "multiply-accumulates"
        loss(small(images())).backward()
        read = [parameter for parameter in small.parameters() if parameter.grad is not None]
        assert found.params == _numbers(read), "parameters that evaluation reads"


def _numbers(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
