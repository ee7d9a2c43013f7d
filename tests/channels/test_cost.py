"""Costs against published tables, another counter, and really cut networks."""

import json
import logging
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, SHAPE, make, random_subnetwork

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.cost import cost, group_share, layer_costs, reachable
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.slim import slim
from ekgsearch.errors import NetworkError

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
# network, classes, shortcut, shape, macs, ekg operations, ekg parameters, parameters, channel groups
TABLE = [
    ("resnet56", 10, "projection", CIFAR, 125_747_840, 126_837_376, 860_026, 855_770, 30),
    ("resnet56", 100, "projection", CIFAR, 125_753_600, 126_843_136, 865_876, 861_620, 30),
    ("resnet20", 10, "projection", CIFAR, 40_813_184, 41_214_592, 274_042, 272_474, 12),
    ("resnet18", 1000, "projection", IMAGENET, 1_814_073_344, 1_819_040_768, 11_699_112, 11_689_512, 12),
    ("resnet34", 1000, "projection", IMAGENET, 3_663_761_408, 3_671_237_632, 21_814_696, 21_797_672, 20),
    ("resnet50", 1000, "projection", IMAGENET, 4_089_184_256, 4_111_412_224, 25_610_152, 25_557_032, 37),
    ("vgg16", 10, "projection", CIFAR, 313_201_664, None, None, 14_728_266, 13),
    ("resnet56", 10, "option_a", CIFAR, 125_485_696, None, None, 853_018, 30),
    ("resnet110", 10, "option_a", CIFAR, 252_887_680, None, None, 1_727_962, 57),
    ("googlenet", 10, "projection", CIFAR, 1_521_756_160, None, None, 6_166_250, 64),
]
OLD_THOP = {"vgg16": 314.58, "resnet56": 127.62, "resnet110": 257.08, "googlenet": 1534.53}


def zoo(name: str, classes: int = 10, shape=CIFAR, **options: str) -> ChannelGraph:
    return analyse(build(zoo_factory(name, classes, shape, **options), seed=0), shape)


@pytest.mark.parametrize(
    ("name", "classes", "shortcut", "shape", "macs", "ekg", "ekg_params", "params", "groups"), TABLE
)
def test_costs_are_those_of_the_literature(name, classes, shortcut, shape, macs, ekg, ekg_params, params, groups):
    graph = zoo(name, classes, shape, shortcut=shortcut)
    full = cost(graph, graph.full())
    assert (full.macs, full.params, len(graph.groups)) == (macs, params, groups)
    if ekg is not None:
        by_ekg = cost(graph, graph.full(), "ekg")
        assert (by_ekg.macs, by_ekg.params) == (ekg, ekg_params)
    else:
        assert round(cost(graph, graph.full(), "thop_old").macs / 1e6, 2) == pytest.approx(OLD_THOP[name], abs=0.011)
    kernels = sum(p.numel() for p in graph.network.parameters() if p.ndim > 1)
    doubled = cost(graph, graph.full(), "2xmac")
    assert (doubled.macs, doubled.params) == (2 * macs, kernels)


def test_costs_per_layer_are_those_of_the_reference_program(data_dir: Path):
    expected = json.loads((data_dir / "oracle" / "complexity_per_layer.json").read_text())
    graph = zoo("resnet56", padding="tf_same")
    rows = {row.layer: row for row in layer_costs(graph, graph.full(), "ekg")}
    for layer, counted in expected.items():
        if isinstance(counted, dict) and layer in rows:
            assert (rows[layer].macs, rows[layer].params) == (counted["flops"], counted["params"]), layer
    assert set(rows) <= set(expected)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "googlenet"])
def test_costs_of_subnetworks_equal_those_counted_on_the_slim_network(name):
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    graph = zoo(name)
    for seed in range(2):
        sub = random_subnetwork(graph, seed)
        small = slim(graph, sub).eval()
        counter = fvcore.FlopCountAnalysis(small, torch.randn(1, *CIFAR)).unsupported_ops_warnings(False)
        by_kind = counter.uncalled_modules_warnings(False).by_operator()
        assert cost(graph, sub).macs == by_kind["conv"] + by_kind["linear"]
        assert cost(graph, sub).params == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("name", ["depthwise", "grouped", "transposed", "literal flatten", "scales", "pre-activation"])
def test_costs_equal_those_of_the_analysed_slim_network(name):
    graph = analyse(make(NETWORKS[name][0]), SHAPE)
    sub = random_subnetwork(graph, 1)
    again = analyse(slim(graph, sub).eval(), SHAPE)
    for counter in ("macs", "ekg", "thop_old", "2xmac"):
        assert cost(graph, sub, counter) == cost(again, again.full(), counter)


def test_costs_per_layer_add_up():
    graph = zoo("resnet20")
    sub = random_subnetwork(graph, 2)
    for counter in ("macs", "ekg", "thop_old", "2xmac"):
        rows, total = layer_costs(graph, sub, counter), cost(graph, sub, counter)
        assert (sum(row.macs for row in rows), sum(row.params for row in rows)) == (total.macs, total.params)
    kept = sub.num_kept["layer1.0.conv1"]
    row = next(row for row in layer_costs(graph, sub) if row.layer == "layer1.0.conv1")
    assert (row.kind, row.out_channels, row.in_channels) == ("conv", kept, sub.num_kept["conv1"])


def test_reachable_cost_keeps_one_channel_in_every_group():
    graph = zoo("resnet20")
    least = graph.full()
    for group in graph.groups:
        least = least.replace(group.name, [group.size - 1])
    assert reachable(graph) == cost(graph, least)


def test_share_of_a_channel_group_is_what_cutting_it_alone_removes():
    graph = zoo("resnet20")
    group = graph.groups[0]
    full, cut = cost(graph, graph.full()), cost(graph, graph.full().replace(group.name, [0]))
    assert group_share(graph, group) == pytest.approx(1 - cut.macs / full.macs, abs=1e-15)
    assert group_share(graph, group.name) == group_share(graph, group)


def test_wrong_subnetworks_and_counters_are_refused():
    graph = zoo("resnet20")
    with pytest.raises(NetworkError, match="counter"):
        cost(graph, graph.full(), "flops")
    with pytest.raises(NetworkError, match="0 kept"):
        cost(graph, graph.full().replace("conv1", []))
    with pytest.raises(NetworkError, match="unknown"):
        cost(graph, zoo("vgg16").full())
