"""The masked network: kernels, masks, prefix reuse, scores; and that nothing of the network changes."""

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, SHAPE, images, make, random_subnetwork

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.records import Subnetwork

MANY = ["option A", "depthwise", "dense", "shuffle", "squeeze and excite", "pre-activation", "control flow"]
LABELS = torch.tensor([0, 2, 3])


def graph_of(name: str) -> ChannelGraph:
    return analyse(make(NETWORKS[name][0]), SHAPE)


def loss(logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, LABELS)


@pytest.mark.parametrize("name", [*MANY, "grouped", "transposed", "depth multiplier"])
def test_masked_kernels_are_zero_outside_and_have_the_norm_of_the_uncut_ones(name):
    graph = graph_of(name)
    sub = random_subnetwork(graph, 1)
    masked = MaskedNetwork(graph)
    scaled, plain = masked.weights(sub), masked.weights(sub, preserve_norm=False)
    assert set(scaled) == {path for path, layer in graph.layers.items() if layer.kind != "norm"}
    for path, kernel in scaled.items():
        weight = graph.layers[path].module.weight.detach()
        assert kernel.norm().item() == pytest.approx(weight.norm().item(), rel=1e-6)
        kept = plain[path] != 0
        assert torch.equal(plain[path][kept], weight[kept])
        assert torch.equal(kernel != 0, kept)
        assert not kernel.requires_grad


def test_kernels_are_masked_on_both_axes():
    graph = graph_of("plain")
    sub = Subnetwork.of({"first.0": [0, 5], "second.0": [3]})
    kernel = MaskedNetwork(graph).weights(sub, preserve_norm=False)["second.0"]
    expected = torch.zeros_like(kernel)
    expected[3, [0, 5]] = graph.network.get_parameter("second.0.weight")[3, [0, 5]].detach()
    assert torch.equal(kernel, expected)


def test_layers_that_lose_nothing_keep_their_kernels_bit_for_bit_and_sites_have_no_mask():
    graph = graph_of("plain")
    masked = MaskedNetwork(graph)
    assert masked.masks(graph.full()) == {}
    for path, kernel in masked.weights(graph.full()).items():
        assert kernel.data_ptr() == graph.layers[path].module.weight.data_ptr()


def test_feature_maps_are_masked_where_consumers_read_them():
    graph = graph_of("plain")
    sub = Subnetwork.of({"first.0": [0, 5], "second.0": [3]})
    masked = MaskedNetwork(graph)
    masks = masked.masks(sub)
    names = frozenset(masks)
    _, values = masked.run(images(), masked.weights(sub), masks, keep=names)
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        graph.group("first.0").sites[0]: [1, 0, 0, 0, 0, 1],
        graph.group("second.0").sites[0]: [0, 0, 0, 1, 0, 0, 0],
    }
    for name, mask in masks.items():
        assert not values[name][:, mask == 0].any()


def test_norm_guard_keeps_an_empty_kernel_finite():
    network = make(NETWORKS["plain"][0])
    with torch.no_grad():
        network.get_parameter("second.0.weight")[3] = 0
    graph = analyse(network, SHAPE)
    kernel = MaskedNetwork(graph).weights(graph.full().replace("second.0", [3]))["second.0"]
    assert not kernel.any()


def _gated_score(graph: ChannelGraph, sub: Subnetwork, site: str, channel: int, gate: float) -> float:
    """Loss with one channel of one site multiplied by a number."""
    masked = MaskedNetwork(graph)
    classes = next(found.classes for found in graph.sites if found.node == site)
    masks = masked.masks(sub)
    mask = masks.get(site, torch.ones(len(classes), dtype=torch.float64)).clone()
    mask[channel] *= gate
    output, _ = masked.run(images(), masked.weights(sub), {**masks, site: mask})
    return float(loss(output))


@pytest.mark.parametrize("name", ["plain", "option A", "depthwise", "dense"])
def test_scores_are_derivatives_to_gates_summed_over_sites(name):
    graph = graph_of(name)
    sub = random_subnetwork(graph, 6)
    scores = MaskedNetwork(graph).scores(images(), loss, sub)
    step = 1e-5
    for group in graph.groups:
        classes = graph.group_classes[group.name]
        for k in {0, group.size - 1}:
            expected = 0.0
            for site in (found for found in graph.sites if found.node in group.sites):
                places = (site.classes == classes[k]).nonzero().flatten().tolist()
                slopes = [
                    _gated_score(graph, sub, site.node, place, 1 + step)
                    - _gated_score(graph, sub, site.node, place, 1 - step)
                    for place in places
                ]
                expected += abs(sum(slopes)) / (2 * step)
            assert scores[group.name][k].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", MANY)
def test_removed_channels_have_score_zero_and_kept_ones_do_not_depend_on_the_mode_of_the_caller(name):
    graph = graph_of(name)
    masked, sub = MaskedNetwork(graph), random_subnetwork(graph, 3)
    scores = masked.scores(images(), loss, sub)
    with torch.no_grad():
        again = masked.scores(images(), loss, sub)
    for group in graph.groups:
        found = scores[group.name]
        assert (found.dtype, found.shape) == (torch.float64, (group.size,))
        removed = sorted(set(range(group.size)) - set(sub[group.name]))
        assert not found[removed].any()
        assert bool((found >= 0).all())
        assert torch.equal(found, again[group.name])
    assert max(float(found.max()) for found in scores.values()) > 0


def test_nothing_of_the_network_changes_while_searching():
    network = build(zoo_factory("resnet20", 10, (3, 16, 16)), seed=3).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    graph = analyse(network, (3, 16, 16))
    masked, x = MaskedNetwork(graph), images((3, 16, 16)).float()
    sub = random_subnetwork(graph, 0)
    masked.scores(x, lambda logits: F.cross_entropy(logits, LABELS), sub)
    masked.forward(x, sub)
    masked.forward(x, sub, norm_mode="running")
    assert all(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_masked_network_follows_changes_of_the_weights():
    graph = graph_of("plain")
    masked, sub = MaskedNetwork(graph), random_subnetwork(graph_of("plain"), 0)
    before = masked(images(), sub)
    with torch.no_grad():
        graph.network.linear.weight.mul_(2.0)
    assert not torch.equal(before, masked(images(), sub))


def test_full_masked_network_is_the_network_bit_for_bit():
    for name in MANY:
        graph = graph_of(name)
        with torch.no_grad():
            expected = graph.network.eval()(images())
        assert torch.equal(MaskedNetwork(graph)(images(), graph.full(), norm_mode="running"), expected)
