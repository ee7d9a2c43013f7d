"""The slim network computes what the masked network computes, and is an ordinary module."""

import copy

import pytest
import torch
from from_the_field import TwoTypes
from networks import NETWORKS, SHAPE, images, make, one_left, random_subnetwork, randomise
from torch import nn
from torch.utils import _pytree as pytree

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.norm import norm_mode
from ekgsearch.channels.sliced import SlicedNetwork
from ekgsearch.channels.slim import ChannelGather, slim
from ekgsearch.errors import NetworkError
from ekgsearch.records import NormMode, Subnetwork

EXACT = 1e-10
"""Largest difference in float64, relative to the largest output: the sums have other orders."""

SINGLE = 1e-5
"""The same in float32."""

MODES: tuple[NormMode, NormMode] = ("batch", "running")
CIFAR = (3, 32, 32)
SMALL = (3, 16, 16)
ZOO = [
    ("resnet20", {}, CIFAR),
    ("resnet20", {"shortcut": "option_a"}, CIFAR),
    ("resnet20", {"padding": "tf_same"}, CIFAR),
    ("resnet18", {}, (3, 64, 64)),
    ("resnet50", {}, (3, 64, 64)),
    ("mobilenet_v2", {}, (3, 64, 64)),
    ("mobilenet_v2", {"padding": "tf_same"}, (3, 64, 64)),
    ("mobilenet_v2_cifar", {}, SMALL),
    ("vgg16", {}, CIFAR),
    ("googlenet", {}, SMALL),
]
LARGE = [
    ("resnet32", {}, CIFAR),
    ("resnet44", {}, CIFAR),
    ("resnet56", {}, CIFAR),
    ("resnet56", {"shortcut": "option_a"}, CIFAR),
    ("resnet56", {"padding": "tf_same"}, CIFAR),
    ("resnet110", {}, CIFAR),
    ("resnet110", {"shortcut": "option_a"}, CIFAR),
    ("resnet34", {}, (3, 64, 64)),
]


def zoo_graph(name: str, options: dict[str, str], shape: tuple[int, int, int]) -> ChannelGraph:
    return analyse(randomise(build(zoo_factory(name, 10, shape, **options), seed=2)).double(), shape)


def difference(graph: ChannelGraph, sub: Subnetwork, mode: NormMode, x: torch.Tensor) -> float:
    """Largest difference between masked and slim outputs, relative to the largest output."""
    masked = pytree.tree_leaves(MaskedNetwork(graph)(x, sub, norm_mode=mode))
    network = slim(graph, sub)
    with norm_mode(network, mode), torch.no_grad():
        outputs = pytree.tree_leaves(network(x))
    assert [a.shape for a in masked] == [b.shape for b in outputs]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(masked, outputs, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options", "shape"), ZOO)
def test_masked_and_slim_networks_agree_on_random_subnetworks_of_the_zoo(name, options, shape, mode):
    graph = zoo_graph(name, options, shape)
    assert difference(graph, random_subnetwork(graph, 5), mode, images(shape, 2)) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "options", "shape"), ZOO + LARGE)
def test_masked_and_slim_networks_agree_on_every_channel_group_of_the_zoo(name, options, shape, mode):
    graph = zoo_graph(name, options, shape)
    for seed, group in enumerate(graph.groups):
        assert difference(graph, one_left(graph, group.name, seed), mode, images(shape, 2)) < EXACT, group.name


def test_masked_and_slim_networks_agree_in_single_precision():
    graph = analyse(randomise(build(zoo_factory("resnet20", 10, CIFAR), seed=2)), CIFAR)
    sub = random_subnetwork(graph, 3)
    assert max(difference(graph, sub, mode, images(CIFAR, 8).float()) for mode in MODES) < SINGLE


@pytest.mark.parametrize("name", ["shuffle", "option A", "grouped", "depthwise", "literal flatten", "transposed"])
def test_slim_network_trains_and_copies_and_leaves_the_original_alone(name):
    network = make(NETWORKS[name][0]).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    graph = analyse(network, SHAPE)
    small = slim(graph, random_subnetwork(graph, 1))
    assert small.training
    duplicate = copy.deepcopy(small)
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(images()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    optimizer.step()
    assert not torch.equal(small.eval()(images()), duplicate.eval()(images()))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_masks_have_the_type_of_what_they_mask():
    graph = analyse(make(TwoTypes), SHAPE)
    sub = random_subnetwork(graph, 1)
    assert difference(graph, sub, "running", images()) < SINGLE
    network = SlicedNetwork(graph, 0.0)
    found = network.forward(images(), network.preparation.whole(sub), norm_mode="running")
    assert torch.equal(found, MaskedNetwork(graph)(images(), sub, norm_mode="running"))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["behind a weight norm by hook", "behind a pruning mask"])
def test_tensors_that_hooks_computed_with_gradients_do_not_stop_the_slimming(name):
    network = make(NETWORKS[name][0]).eval()
    graph = analyse(network, SHAPE)
    expected = network(images())
    torch.testing.assert_close(slim(graph, graph.full())(images()), expected, rtol=1e-12, atol=1e-12)


def test_slim_network_of_all_channels_is_the_network_bit_for_bit():
    graph = analyse(randomise(build(zoo_factory("resnet20", 10, CIFAR), seed=2)).eval(), CIFAR)
    x = images(CIFAR, 4).float()
    with torch.no_grad():
        assert torch.equal(slim(graph, graph.full())(x), graph.network(x))


def test_dropout_of_a_slim_network_follows_its_training_mode():
    graph = analyse(make(NETWORKS["literal flatten"][0]).eval(), SHAPE)
    small = slim(graph, random_subnetwork(graph, 0))
    assert torch.equal(small(images()), small(images()))
    with norm_mode(small, "running"):
        pass
    small.train()
    for module in small.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(small(images()), small(images()))


def test_cut_kernels_have_the_norm_of_the_uncut_ones_and_plain_cuts_are_slices():
    graph = analyse(make(NETWORKS["depthwise"][0]), SHAPE)
    sub = random_subnetwork(graph, 4)
    kept = sub["stem.0"]
    scaled, plain = slim(graph, sub), slim(graph, sub, preserve_norm=False)
    for path, layer in graph.layers.items():
        if path in dict(scaled.named_modules()) and layer.kind != "norm":
            norm = scaled.get_parameter(f"{path}.weight").norm()
            assert norm.item() == pytest.approx(layer.module.weight.norm().item(), rel=1e-12)
    original = graph.network.get_parameter("stem.0.weight")
    assert torch.equal(plain.get_parameter("stem.0.weight"), original[list(kept)])
    assert plain.get_submodule("filter.0").groups == len(sub["expand.0"])


def test_channel_order_is_kept():
    graph = analyse(make(NETWORKS["plain"][0]), SHAPE)
    small = slim(graph, graph.full().replace("first.0", [4, 1]))
    norm = graph.network.get_submodule("first.1")
    assert torch.equal(small.get_submodule("first.1").running_mean, norm.running_mean[[1, 4]])


def test_channel_shuffle_becomes_a_gather_that_is_not_in_the_state():
    graph = analyse(make(NETWORKS["shuffle"][0]), SHAPE)
    small = slim(graph, random_subnetwork(graph, 3))
    assert any(isinstance(module, ChannelGather) for module in small.modules())
    assert not [key for key in small.state_dict() if "gather" in key]


def test_slimming_refuses_a_subnetwork_of_another_network():
    graph, other = (analyse(make(NETWORKS[name][0]), SHAPE) for name in ("plain", "dense"))
    with pytest.raises(NetworkError, match="unknown"):
        slim(graph, other.full())
