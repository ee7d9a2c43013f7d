"""The sliced network computes what the masked network computes: the same bits where nothing is sliced."""

import torch
from networks import NETWORKS, SHAPE, images, make, one_left, random_subnetwork

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.sliced import SlicedNetwork, first_steps


def graph_of(name: str) -> ChannelGraph:
    return analyse(make(NETWORKS[name][0]), SHAPE)


def test_slicing_leaves_removed_channels_out_of_every_feature_map_of_a_resnet():
    graph = analyse(build(zoo_factory("resnet20", 10, (3, 16, 16)), seed=1).eval(), (3, 16, 16))
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
        graph = analyse(build(zoo_factory(name, 10, (3, 32, 32))).eval(), (3, 32, 32))
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
