"""Which channels are found to be coupled, cuttable or frozen."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from blocks import OptionA, Shuffle
from networks import NETWORKS, SHAPE, make
from operations_in_between import MIXERS
from torch import nn
from unusual import TwoOutputs

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import NetworkError
from ekgsearch.records import Subnetwork

CIFAR = (3, 32, 32)
GROUP_COUNTS = {
    "resnet20": 12,
    "resnet56": 30,
    "resnet110": 57,
    "resnet18": 12,
    "resnet34": 20,
    "resnet50": 37,
    "vgg16": 13,
    "mobilenet_v2": 25,
    "mobilenet_v2_cifar": 25,
    "googlenet": 64,
}


def network(name: str, **options: str) -> nn.Module:
    return build(zoo_factory(name, 10, CIFAR, **options), seed=1)


def test_channels_that_an_operation_may_mix_are_frozen_with_a_reason_and_no_others():
    for name, builder in MIXERS.items():
        graph = analyse(make(builder), SHAPE)
        assert [group.name for group in graph.groups] == ["before.0", "after.0"], name
        frozen = {group.name: group for group in graph.frozen}
        assert frozen["inner.0"].size == 6, name
        assert len(frozen["inner.0"].frozen.split()) >= 4, name


@pytest.mark.parametrize(("name", "count"), GROUP_COUNTS.items())
def test_zoo_networks_have_the_known_number_of_channel_groups(name, count):
    graph = analyse(network(name), CIFAR)
    assert len(graph.groups) == count
    assert [group.frozen for group in graph.frozen] == ["network input", "network output"]


@pytest.mark.parametrize("options", [{"shortcut": "option_a"}, {"padding": "tf_same"}])
def test_shortcut_and_padding_do_not_change_the_number_of_channel_groups(options):
    assert len(analyse(network("resnet56", **options), CIFAR).groups) == 30


def test_resnet56_channel_groups_are_the_gates_of_the_reference_program(data_dir: Path):
    gates = json.loads((data_dir / "oracle" / "gates.json").read_text())
    graph = analyse(network("resnet56", padding="tf_same"), CIFAR)
    assert len(gates) == len(graph.groups)
    for gate, group in zip(gates, graph.groups, strict=True):
        made = {member.layer for member in (*group.producers, *group.norms)}
        assert (group.name, group.size, group.uses) == (gate["pt_name"], gate["channels"], gate["num_call"])
        assert {name.replace("shortcut.1", "shortcut.1") for name in made} == set(gate["out_of"])
        assert {member.layer for member in group.consumers} == set(gate["in_of"])


def test_resnet56_sites_are_where_the_reference_program_masks():
    graph = analyse(network("resnet56"), CIFAR)
    sites = {group.name: len(group.sites) for group in graph.groups}
    assert sites["conv1"] == 10
    assert sites["layer2.0.shortcut.0"] == sites["layer3.0.shortcut.0"] == 9
    assert {count for name, count in sites.items() if name.endswith("conv1") and name != "conv1"} == {1}
    assert all(site.node.startswith("relu") for site in graph.sites)


SITES = {
    "resnet20": 19,  # the stem, and in each of 9 blocks the inner map and the sum
    "resnet50": 49,  # the pooled stem, and in each of 16 blocks two inner maps and the sum
    "vgg16": 13,  # one behind each convolution
    # 9 blocks with 3 inner maps and a pooled one; 7 whose 4 branches are read as they are, 2 behind a pool; the stem
    "googlenet": 9 * (3 + 1) + 7 * 4 + 2 + 1,
}
"""Places where consumers read, counted by hand."""


@pytest.mark.parametrize(("name", "count"), SITES.items())
def test_zoo_networks_are_masked_at_every_place_that_is_read(name, count):
    assert len(analyse(network(name), CIFAR).sites) == count


def test_every_part_of_a_join_is_masked_where_it_is_read():
    """Counted by hand: what a concatenation joins is read through it, whichever part it is."""
    dense, unet, units = (analyse(make(NETWORKS[name][0]), SHAPE) for name in ("dense", "u-net", "shuffle"))
    assert {group.name: group.sites for group in dense.groups} == {
        "a.0": ("a_2",),
        "b.0": ("b_2", "relu"),
        "c.0": ("relu",),
    }
    assert {group.name: group.sites for group in unet.groups} == {
        "down.0": ("down_2",),
        "deep.0": ("deep_2",),
        "up.0": ("up_2",),
    }
    assert [site.node for site in units.sites] == [
        "stem_2", "one_0_2", "one_1_2", "one_2_2", "two_0_2", "two_1_2", "two_2_2",
    ]  # fmt: skip


def test_resnet50_stem_is_masked_after_the_max_pool():
    graph = analyse(network("resnet50"), CIFAR)
    assert graph.group("conv1").sites == (graph.sites[0].node,)
    assert "pool" in graph.sites[0].node


def test_mobilenet_expansion_is_masked_after_both_activations_and_counts_as_one_use():
    graph = analyse(network("mobilenet_v2"), CIFAR)
    group = next(group for group in graph.groups if group.size == 144)
    assert len(group.sites) == 2
    assert [len(group.producers), len(group.depthwise), group.uses] == [1, 1, 1]


def test_parameter_free_shortcut_couples_shifted_channels():
    graph = analyse(make(OptionA), SHAPE)
    stream, rest = graph.group("stem.0"), graph.group("d")
    by_layer = {member.layer: member.positions for member in stream.producers}
    assert by_layer["stem.0"] == tuple((k,) for k in range(8))
    assert by_layer["d"] == tuple((k + 4,) for k in range(8))
    assert rest.producers[0].positions == tuple((k,) for k in (0, 1, 2, 3, 12, 13, 14, 15))
    assert stream.uses == 3


def test_flattened_maps_give_each_channel_its_columns():
    graph = analyse(make(NETWORKS["literal flatten"][0]), SHAPE)
    consumer = graph.group("b.0").consumers[0]
    assert consumer.layer == "hidden"
    assert consumer.positions[2] == tuple(range(32, 48))


def test_grouped_convolutions_couple_one_channel_of_each_of_their_groups():
    graph = analyse(make(NETWORKS["grouped"][0]), SHAPE)
    assert graph.group("stem.0").producers[0].positions == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert graph.group("grouped.0").producers[0].positions[1] == (1, 4, 7, 10)


def test_several_channel_groups_of_one_producer_are_numbered():
    graph = analyse(make(Shuffle), SHAPE)
    assert [group.name for group in graph.groups][:3] == ["stem.0", "stem.0:2", "stem.0:3"]


def test_input_and_all_outputs_are_frozen():
    graph = analyse(make(TwoOutputs), SHAPE)
    reasons = {group.name: group.frozen for group in graph.frozen}
    assert reasons == {
        "x": "network input",
        "stem.0": "network output",
        "a": "network output",
        "b": "network output",
    }


def test_every_convolution_output_belongs_to_exactly_one_channel_group():
    for name in ("resnet20", "mobilenet_v2", "googlenet"):
        net = network(name)
        graph = analyse(net, CIFAR)
        owned: dict[str, list[int]] = {}
        for group in (*graph.groups, *graph.frozen):
            for member in (*group.producers, *group.depthwise):
                owned.setdefault(member.layer, []).extend(i for indices in member.positions for i in indices)
        convs = {path: module for path, module in net.named_modules() if isinstance(module, nn.Conv2d)}
        for path, module in convs.items():
            assert sorted(owned[path]) == list(range(module.out_channels))


def test_analysis_leaves_the_network_as_it_was():
    net = network("resnet20").train()
    net.layer1.eval()
    modes = [module.training for module in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    attributes = set(vars(net))
    analyse(net, CIFAR)
    assert [module.training for module in net.modules()] == modes
    assert set(vars(net)) == attributes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda full: full.replace("conv1", []), "0 kept channels of 16"),
        (lambda full: full.replace("conv1", [3, 16]), "0..15"),
        (lambda full: Subnetwork(full.kept[1:]), "missing"),
        (lambda full: Subnetwork((*full.kept, full.kept[0])), "once"),
        (lambda full: Subnetwork((*full.kept, ("nowhere", (0,)))), "unknown"),
        (lambda full: Subnetwork((*full.kept, ("linear", (0,)))), "frozen: network output"),
        (lambda full: Subnetwork((("conv1", (2, 1)), *full.kept[1:])), "ascending"),
    ],
)
def test_subnetworks_that_do_not_fit_are_refused_with_the_reason(change, words):
    graph = analyse(network("resnet20"), CIFAR)
    graph.validate(graph.full())
    with pytest.raises(NetworkError, match=words):
        graph.validate(change(graph.full()))


def _ours(group: ChannelGroup, channel: int) -> set[tuple[str, str, tuple[int, ...]]]:
    roles = {"out": group.producers, "in": group.consumers, "norm": group.norms, "depthwise": group.depthwise}
    return {(m.layer, role, m.positions[channel]) for role, members in roles.items() for m in members}


def _theirs(
    graph: ChannelGraph, dependency, group: ChannelGroup, channel: int
) -> set[tuple[str, str, tuple[int, ...]]]:
    import torch_pruning as tp

    names = {module: path for path, module in graph.network.named_modules()}
    producer = group.producers[0]
    root = graph.network.get_submodule(producer.layer)
    prune = tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
    found: dict[tuple[str, str], set[int]] = {}
    for dep, indices in dependency.get_pruning_group(root, prune, idxs=list(producer.positions[channel])):
        module = dep.target.module
        if module not in names:
            continue
        if isinstance(module, nn.BatchNorm2d):
            role = "norm"
        elif isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            role = "depthwise"
        else:
            role = "out" if dependency.is_out_channel_pruning_fn(dep.handler) else "in"
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            found.setdefault((names[module], role), set()).update(indices)
    return {(layer, role, tuple(sorted(indices))) for (layer, role), indices in found.items()}


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "mobilenet_v2", "vgg16", "googlenet"])
def test_channel_groups_equal_those_of_torch_pruning(name):
    tp = pytest.importorskip("torch_pruning")
    graph = analyse(network(name).eval(), CIFAR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dependency = tp.DependencyGraph().build_dependency(graph.network, torch.randn(1, *CIFAR))
    for group in graph.groups:
        for channel in {0, group.size - 1}:
            assert _ours(group, channel) == _theirs(graph, dependency, group, channel), group.name
