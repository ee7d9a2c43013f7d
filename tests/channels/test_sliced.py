"""The sliced network computes what the masked network computes: the same bits where nothing is sliced."""

import copy
from typing import Any

import pytest
import torch
from networks import NETWORKS, SHAPE, images, make, one_left, random_subnetwork
from torch.utils import _pytree as pytree

from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.prepare import Prepared
from ekgsearch.channels.sliced import SlicedNetwork, first_steps
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.zoo import build


def graph_of(name: str) -> ChannelGraph:
    return analyse(make(NETWORKS[name][0]), SHAPE)


def loss(output: Any) -> torch.Tensor:
    """A loss that no output is symmetric in, of whatever a network returns."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tensors_of(output):
        total = (
            total + (leaf * torch.linspace(-1.0, 1.0, leaf.numel(), dtype=leaf.dtype).view(leaf.shape)).square().sum()
        )
    return total


def tensors_of(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def assert_same_bits(found: Any, expected: Any) -> None:
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def candidates_of(network: SlicedNetwork, current: Prepared) -> list[tuple[str, Prepared]]:
    sub = current.subnetwork
    return [
        (group.name, network.preparation.narrowed(current, sub.replace(group.name, sub[group.name][:1]), group.name))
        for group in network.graph.groups
    ]


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("mode", ["batch", "running"])
def test_outputs_are_those_of_the_masked_network(name, mode):
    graph = graph_of(name)
    masked, x = MaskedNetwork(graph), images()
    for below in (1.0, 0.6, 0.0):
        network = SlicedNetwork(graph, below)
        for seed in range(3):
            sub = random_subnetwork(graph, seed)
            expected = masked.forward(x, sub, norm_mode=mode)
            found = network.forward(x, network.preparation.whole(sub), norm_mode=mode)
            if below == 0.0:
                assert_same_bits(found, expected)
            else:
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("below", [1.0, 0.6, 0.0])
def test_candidates_that_branch_off_give_the_bits_of_whole_runs(name, below):
    graph = graph_of(name)
    network, x = SlicedNetwork(graph, below), images()
    current = network.preparation.whole(random_subnetwork(graph, 4))
    candidates = candidates_of(network, current)
    before = {key: tensor.clone() for key, tensor in current.tensors.items()}
    pixels = x.clone()
    walk = network.scores(x, loss, current)[2]
    kept = {index: {key: copy.deepcopy(value) for key, value in found.items()} for index, found in walk.before.items()}
    outputs = network.branches(x, current, candidates)
    from_scores = network.branches(x, current, candidates, walk=walk)
    for (_, candidate), output, other in zip(candidates, outputs, from_scores, strict=True):
        whole = network.preparation.whole(candidate.subnetwork)
        assert_same_bits(output, network.forward(x, whole))
        assert_same_bits(other, output)
    for index, found in walk.before.items():
        for key, value in found.items():
            assert_same_bits(value, kept[index][key])
    assert torch.equal(x, pixels), "the images were written"
    assert all(torch.equal(current.tensors[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", sorted(name for name, (_, sizes) in NETWORKS.items() if sizes))
def test_scores_are_those_of_the_masked_network(name):
    graph = graph_of(name)
    sub, x = random_subnetwork(graph, 6), images()
    expected = MaskedNetwork(graph).scores(x, loss, sub)
    for below in (0.0, 0.6, 1.0):
        network = SlicedNetwork(graph, below)
        output, found, _ = network.scores(x, loss, network.preparation.whole(sub))
        assert_same_bits(output, network.forward(x, network.preparation.whole(sub)))
        for group in graph.groups:
            torch.testing.assert_close(found[group.name], expected[group.name], rtol=1e-9, atol=1e-12)
            removed = sorted(set(range(group.size)) - set(sub[group.name]))
            assert not found[group.name][removed].any()


def test_slicing_leaves_removed_channels_out_of_every_feature_map_of_a_resnet():
    graph = analyse(build(NetSpec("resnet20", 10, (3, 16, 16)), seed=1).eval(), (3, 16, 16))
    network = SlicedNetwork(graph, 1.0)
    assert network.preparation.sliceable == {group.name for group in graph.groups}
    sub = graph.full()
    for group in graph.groups:
        sub = sub.replace(group.name, range(0, group.size, 2))
    prepared = network.preparation.whole(sub)
    assert not prepared.masks
    for path, layer in graph.layers.items():
        kept = layer.module.get_parameter("weight").shape[0] // (1 if path == "linear" else 2)
        assert prepared.tensors[path].shape[0] == kept


def test_a_channel_group_above_the_threshold_is_masked_and_one_at_it_is_sliced():
    graph = graph_of("plain")
    group = graph.groups[0]
    network = SlicedNetwork(graph, (group.size - 1) / group.size)
    at = network.preparation.whole(one_left(graph, group.name, 1))
    above = network.preparation.whole(graph.full())
    assert set(at.present) == set(group.sites)
    assert not above.present
    narrow = SlicedNetwork(graph, 0.1).preparation.whole(graph.full().replace(group.name, range(group.size - 1)))
    assert set(narrow.masks) == set(group.sites)


def test_channel_groups_that_are_rearranged_in_ways_that_need_all_channels_are_masked():
    graph = graph_of("option A")
    network = SlicedNetwork(graph, 1.0)
    padded = {group.name for group in graph.groups} - network.preparation.sliceable
    assert padded, "zero-padded shortcuts place channels by number"
    sub = random_subnetwork(graph, 0)
    assert set(network.preparation.whole(sub).masks) <= {site for name in padded for site in graph.group(name).sites}


def test_networks_of_the_zoo_can_be_sliced_whole():
    for name in ("resnet56", "resnet18", "resnet50", "mobilenet_v2", "vgg16"):
        graph = analyse(build(NetSpec(name, 10, (3, 32, 32))).eval(), (3, 32, 32))
        assert SlicedNetwork(graph, 1.0).preparation.sliceable == {group.name for group in graph.groups}, name


def test_nothing_before_the_first_step_depends_on_the_channel_group():
    graph = graph_of("option A")
    masked, x = MaskedNetwork(graph), images()
    names = frozenset(step.name for step in graph.trace.program.steps)
    _, full = masked.run(x, {}, {}, keep=names)
    order = [step.name for step in graph.trace.program.steps]
    for group in graph.groups:
        sub = one_left(graph, group.name, 1)
        _, cut = masked.run(x, masked.weights(sub), masked.masks(sub), keep=names)
        changed = [
            index
            for index, name in enumerate(order)
            if isinstance(full[name], torch.Tensor) and not torch.equal(full[name], cut[name])
        ]
        assert min(changed) == first_steps(graph, graph.trace.program)[group.name]
