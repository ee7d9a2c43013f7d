"""What a network does in training only is found, said, and kept where that can be."""

import copy
import random

import pytest
import torch
from blocks import Head, conv
from from_the_field import AuxiliaryHead, DropsPaths, OtherInTraining
from networks import NETWORKS, SHAPE, images, make, random_subnetwork
from torch import nn

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_ordinary_networks_give_no_warning():
    for name, (builder, _) in NETWORKS.items():
        if name != "auxiliary head":
            assert analyse(make(builder), SHAPE).warnings == (), name


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        (DropsPaths, "draws random numbers outside dropout"),
        (OtherInTraining, r"'body' (Scaled) gives something else in training"),
        (AuxiliaryHead, "runs modules that evaluation does not: side, hidden, out; the slim network has this"),
        (lambda: AuxiliaryHead(is_noisy=True), "side, hidden, out; sub-networks and the slim network are those of the"),
    ],
)
def test_a_forward_that_is_another_in_training_is_said(builder, words):
    network = make(builder).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, python = torch.get_rng_state(), random.getstate()
    graph = analyse(network, SHAPE)
    assert len(graph.warnings) == 1
    assert words in graph.warnings[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_forward_that_fails_in_training_is_said():
    class Fails(Head):
        def __init__(self) -> None:
            super().__init__(6)
            self.stem = conv(3, 6)

        def forward(self, x):
            assert not self.training, "labels are missing"
            return self.head(self.stem(x))

    assert "fails on (2, 3, 8, 8): AssertionError: labels are missing" in analyse(make(Fails), SHAPE).warnings[0]


def test_an_operation_that_torch_does_not_count_is_said():
    from torchvision.ops import DeformConv2d

    class Deformed(Head):
        def __init__(self) -> None:
            super().__init__(6)
            self.stem, self.offsets, self.deformed = (
                conv(3, 6),
                nn.Conv2d(6, 18, 3, padding=1),
                DeformConv2d(6, 6, 3, padding=1),
            )

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.deformed(x, self.offsets(x)))

    [warning] = analyse(make(Deformed), SHAPE).warnings
    assert "torchvision::deform_conv2d are not counted" in warning


def test_the_slim_network_trains_the_auxiliary_head_and_does_without_it_in_evaluation():
    network = make(AuxiliaryHead)
    graph = analyse(network, SHAPE)
    assert [group.name for group in graph.groups] == ["stem.0", "body.0"]
    assert {member.layer for member in graph.group("stem.0").consumers} == {"body.0", "side.0"}
    assert {path.split(".")[0] for path in graph.auxiliary} == {"side", "hidden", "out"}
    whole = copy.deepcopy(slim(graph, graph.full()))
    for training in (True, False):
        found, expected = [], []
        for one, outputs in ((network, expected), (whole, found)):
            torch.manual_seed(3)
            outputs.append(one.train(training)(images()))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert set(whole.state_dict()) == set(network.state_dict())
    small = slim(graph, graph.full().replace("stem.0", [1, 4])).train()
    logits, side = small(images())
    (logits.sum() + side.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert small.get_parameter("side.0.weight").shape == (5, 2, 3, 3)


def test_costs_are_those_of_evaluation():
    """Cutting what an auxiliary head reads makes evaluation cheaper by what evaluation saves."""
    plain = NETWORKS["unread layer"][0]
    graph, without = analyse(make(AuxiliaryHead), SHAPE), analyse(make(plain), SHAPE)
    sub = random_subnetwork(without, 1)
    assert cost(graph, sub) == cost(without, sub)


def test_googlenet_of_torchvision_keeps_its_auxiliary_heads():
    from torchvision.models import googlenet

    torch.manual_seed(0)
    network = googlenet(weights=None, num_classes=10, init_weights=False)
    graph = analyse(network, (3, 64, 64))
    small = slim(graph, random_subnetwork(graph, 0)).train()
    outputs = small(torch.randn(2, 3, 64, 64))
    assert [tuple(part.shape) for part in outputs] == [(2, 10)] * 3
    assert outputs._fields == ("logits", "aux_logits2", "aux_logits1")
    assert small.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 10)
