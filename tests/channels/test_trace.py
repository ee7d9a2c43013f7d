"""Tracing: both tracers, in-place operations, and what cannot be traced."""

import logging

import pytest
import torch
import torch.nn.functional as F
from blocks import Head, conv
from networks import NETWORKS, SHAPE, images, make
from torch import nn

from ekgsearch.channels.graph import analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.operations import Kind
from ekgsearch.channels.slim import slim
from ekgsearch.channels.trace import trace
from ekgsearch.errors import NetworkError


class Body(Head):
    """A stem and a body around a function given by the test."""

    def __init__(self, function) -> None:
        super().__init__(6)
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), conv(6, 6)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self, self.stem(x)))


def assert_same(network: nn.Module) -> None:
    """The traced network gives bit for bit what the network gives."""
    graph = analyse(network, SHAPE)
    with torch.no_grad():
        expected = network.eval()(images())
    assert torch.equal(MaskedNetwork(graph)(images(), graph.full(), norm_mode="running"), expected)


def _write_then_read_old_name(net, x):
    y = net.body(x)
    F.relu_(x)
    return y + x


def _write_through_view(net, x):
    half = x[:, :3]
    half.relu_()
    return x


def _accumulate(net, x):
    y = net.body(x)
    y += x
    y *= 2
    return y


def test_later_readers_of_a_tensor_written_in_place_see_the_new_value():
    assert_same(make(lambda: Body(_write_then_read_old_name)))
    assert_same(make(lambda: Body(_accumulate)))


def test_writing_through_a_view_that_is_read_later_is_refused():
    with pytest.raises(NetworkError, match="in place"):
        analyse(make(lambda: Body(_write_through_view)), SHAPE)


def test_index_assignment_is_refused():
    def assign(net, x):
        x[:, :2] = 0
        return x

    with pytest.raises(NetworkError, match="in place"):
        analyse(make(lambda: Body(assign)), SHAPE)


def test_sizes_are_numbers_even_when_added_to_in_place():
    def grow(net, x):
        height = x.size(2)
        double = height
        double += height
        return F.interpolate(x, size=(double, height))

    assert_same(make(lambda: Body(grow)))


def test_export_takes_over_where_symbolic_tracing_fails(caplog):
    caplog.set_level(logging.INFO)
    network = make(NETWORKS["control flow"][0])
    traced = trace(network, SHAPE)
    assert "trying torch.export" in caplog.text
    kinds = set(traced.kinds.values())
    assert {Kind.CONV, Kind.LINEAR, Kind.NORM, Kind.IDENTITY} <= kinds
    assert Kind.UNKNOWN not in kinds
    assert_same(network)


def test_export_reads_the_same_channel_groups_as_symbolic_tracing(monkeypatch):
    from ekgsearch.channels import tracers

    for name in ("option A", "depthwise", "dense", "shuffle", "squeeze and excite", "literal flatten", "in place"):
        expected = analyse(make(NETWORKS[name][0]), SHAPE)
        with monkeypatch.context() as patch:
            patch.setattr(tracers, "symbolic", lambda *_, **__: 1 / 0)
            found = analyse(make(NETWORKS[name][0]), SHAPE)
        assert found.full() == expected.full()
        pairs = zip(found.groups, expected.groups, strict=True)
        assert all((a.producers, a.consumers, a.norms) == (b.producers, b.consumers, b.norms) for a, b in pairs)
        assert len(found.sites) == len(expected.sites)


def test_a_forward_that_depends_on_values_is_refused_with_both_reasons():
    def branch(net, x):
        return x if x.mean() > 0 else -x

    with pytest.raises(NetworkError, match=r"torch\.fx says.*torch\.export says"):
        analyse(make(lambda: Body(branch)), SHAPE)


def test_a_forward_with_two_inputs_is_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x, y):
            return self.a(x) + y

    with pytest.raises(NetworkError):
        analyse(Two(), SHAPE)


def test_arguments_with_defaults_take_them():
    class Optional(Body):
        def forward(self, x, mask=None, scale=2.0):
            x = self.stem(x) * scale
            return self.head(x if mask is None else x * mask)

    network = make(lambda: Optional(None))
    assert_same(network)
    assert [group.size for group in analyse(network, SHAPE).groups] == [6]


def test_tensors_made_in_the_forward_belong_to_the_trace_and_freeze_what_they_meet():
    factor = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 6, 1, 1)
    network = make(lambda: Body(lambda net, x: net.body(x) * factor))
    before = set(vars(network))
    graph = analyse(network, SHAPE)
    assert set(vars(network)) == before
    assert [group.name for group in graph.groups] == ["stem"]
    assert_same(network)
    small = slim(graph, graph.full().replace("stem", [2])).eval()
    assert small(images()).shape == (3, 4)


def test_randomness_in_the_forward_is_refused():
    with pytest.raises(NetworkError, match="other outputs"):
        analyse(make(lambda: Body(lambda net, x: F.dropout(x, 0.5, training=True))), SHAPE)


def test_a_weight_read_outside_its_layer_freezes_the_layer():
    network = make(lambda: Body(lambda net, x: net.body(x) * net.body[0].weight.norm()))
    graph = analyse(network, SHAPE)
    assert not [group for group in graph.groups if group.name == "body.0"]
    assert "used elsewhere" in next(group.frozen for group in graph.frozen if group.name == "body.0")


@pytest.mark.parametrize(("network", "words"), [(nn.ReLU(), "parameters"), (nn.Conv2d(3, 3, 1), "input shape")])
def test_networks_and_shapes_that_make_no_sense_are_refused(network, words):
    with pytest.raises(NetworkError, match=words):
        analyse(network, (3, 8) if words == "input shape" else SHAPE)


def test_an_input_that_the_network_does_not_take_is_named_with_its_shape():
    network = make(NETWORKS["plain"][0])
    with pytest.raises(NetworkError, match=r"fails on images of shape \(1, 8, 8\): RuntimeError.*channels"):
        analyse(network, (1, 8, 8))
    shrinking = nn.Sequential(nn.Conv2d(3, 4, 7), nn.Conv2d(4, 5, 7)).double()
    with pytest.raises(NetworkError, match=r"shape \(3, 8, 8\).*large enough"):
        analyse(shrinking, SHAPE)


def test_a_forward_that_mixes_the_images_of_a_batch_is_named():
    class FromAxisZero(Body):
        def forward(self, x):
            return self.wide(torch.flatten(self.stem(x)))

    network = FromAxisZero(None)
    network.wide = nn.Linear(6 * 64, 4)
    with pytest.raises(NetworkError, match=r"one image of shape .* but not on a batch of 2"):
        analyse(network.double(), SHAPE)


@pytest.mark.parametrize("name", ["for", 'qu"ote'])
def test_a_part_whose_name_cannot_be_written_in_code_is_named(name):
    network = make(lambda: Body(lambda net, x: getattr(net, name)(x)))
    network.add_module(name, conv(6, 6).double())
    with pytest.raises(NetworkError, match=f"part named {name!r}.*another name"):
        analyse(network, SHAPE)


def _exported() -> nn.Module:
    return torch.export.export(make(NETWORKS["plain"][0]).eval(), (images(),)).module()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: F.relu, "torch.nn.Module, found function"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(4)), "lazy layers; run it once"),
        (lambda: make(NETWORKS["plain"][0]).to("meta"), "meta device; load its weights"),
        (lambda: nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 1))), "scripted or traced"),
        (_exported, "an exported program"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_looked_into_is_named(build, words):
    with pytest.raises(NetworkError, match=words):
        analyse(build(), SHAPE)


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_networks_take_any_number_of_input_channels(channels):
    network = make(lambda: nn.Sequential(conv(channels, 6), conv(6, 5), nn.Flatten(), nn.Linear(5 * 64, 4)))
    graph = analyse(network, (channels, 8, 8))
    assert [group.size for group in graph.groups] == [6, 5]
    small = slim(graph, graph.full().replace("0.0", [1])).eval()
    assert small(images((channels, 8, 8))).shape == (3, 4)


@pytest.mark.parametrize(
    "name", ["own kernel in a buffer", "own names", "fixed blur used twice", "behind a frozen norm"]
)
def test_tensors_that_change_after_the_analysis_are_followed(name):
    """Written in place, and replaced as `load_state_dict(assign=True)` and moves to another type do."""
    network = make(NETWORKS[name][0]).eval()
    graph = analyse(network, SHAPE)
    masked = MaskedNetwork(graph)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
        for module in network.modules():
            for key, buffer in list(module._buffers.items()):
                module._buffers[key] = buffer * 0.5 if buffer.is_floating_point() else buffer.clone()
        expected = network(images())
        found = slim(graph, graph.full()).eval()(images())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked(images(), graph.full(), norm_mode="running"), expected, rtol=1e-12, atol=1e-12)
