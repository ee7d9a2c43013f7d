"""Exemplars in whole networks (invariants P1 to P10 of EPruner as far as they concern more than one layer)."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import AffinityPropagation
from torch import Tensor, nn

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.weights import load_weights
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.errors import BudgetError, NetworkError
from ekgsearch.methods.base import Decision, Materials, decisions_from_records
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.methods.epruner.search import BETA_RESOLUTION, Epruner
from ekgsearch.methods.epruner.section import EprunerSection

CUTS = 0.97
"""A beta at which fresh filters, all about as far from each other, lose some of theirs."""


def graph_of(name: str = "resnet20", size: int = 8, weights: Path | None = None) -> ChannelGraph:
    network = build(zoo_factory(name, 10, (3, size, size)), seed=2)
    if weights is not None:
        load_weights(network, weights)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(module.num_features))
    return analyse(network.eval(), (3, size, size))


def opened(graph: ChannelGraph, *, threads: int = 1, betas: tuple[float, ...] = (), **fields: Any) -> Epruner:
    section = EprunerSection(**fields)
    groups = chosen_groups(graph, section)
    budget = set_budget(
        graph, reduction=section.reduction, absolute=section.budget, unit="macs", counter="macs", groups=groups
    )
    return section.open(
        Materials(
            graph=graph,
            groups=groups,
            open_graph=lambda: graph,
            budget=budget,
            seed=5,
            threads=threads,
            evaluator=lambda: pytest.fail("no image is looked at"),
            batches=[],
            tie_tolerance=0.0,
            betas=betas,
        )
    )


def decided(graph: ChannelGraph, **fields: Any) -> Decision:
    return list(opened(graph, **fields).run())[-1]


def slimmed(graph: ChannelGraph, **fields: Any) -> tuple[nn.Module, Decision]:
    search = opened(graph, **fields)
    *_, last = search.run()
    return search.slim(graph, last.subnetwork), last


def counts(decision: Decision) -> dict[str, int]:
    return {name: layer["num_kept"] for name, layer in decision.own["layers"].items()}


def test_each_layer_keeps_the_exemplars_that_scikit_learn_finds() -> None:
    graph = graph_of()
    found = decided(graph, beta=CUTS)
    assert set(counts(found)) == {group.name for group in graph.groups if group.uses == 1}
    assert any(len(found.subnetwork[group.name]) < group.size for group in graph.groups)
    for name in counts(found):
        points = graph.network.get_submodule(name).weight.detach().double().flatten(1).numpy()
        similarity = -((points[:, None] - points[None]) ** 2).sum(-1)
        medians = torch.from_numpy(similarity).quantile(0.5, dim=0).numpy()
        oracle = AffinityPropagation(affinity="precomputed", preference=CUTS * medians, random_state=0).fit(similarity)
        assert sorted(oracle.cluster_centers_indices_) == list(found.subnetwork[name]), name


@pytest.mark.skipif("EKGSEARCH_DATA" not in os.environ, reason="EKGSEARCH_DATA is not set: real data needed")
def test_a_trained_network_keeps_as_many_filters_as_was_measured_of_the_published_rule() -> None:
    graph = graph_of("resnet56", 32, Path(os.environ["EKGSEARCH_DATA"]) / "weights/resnet56_cifar10_ekg.safetensors")
    kept = {beta: sum(counts(decided(graph, beta=beta)).values()) for beta in (0.5, 0.65, 0.76, 0.9, 1.0)}
    assert kept == {0.5: 818, 0.65: 586, 0.76: 334, 0.9: 110, 1.0: 84}


def test_streams_that_several_layers_write_into_keep_their_width_and_totals_are_those_published() -> None:
    for name, total, size in (("vgg16", 4224, 32), ("resnet56", 2032, 32), ("googlenet", 7904, 32)):
        graph = graph_of(name, size)
        modules = (layer.module for path, layer in graph.layers.items() if "shortcut" not in path)
        assert sum(module.out_channels for module in modules if isinstance(module, nn.Conv2d)) == total, name
    graph = graph_of()
    found = decided(graph, beta=1.0)
    for group in graph.groups:
        if group.uses > 1:
            assert len(found.subnetwork[group.name]) == group.size


def test_a_beta_near_zero_with_sliced_norms_changes_nothing() -> None:
    graph, images = graph_of(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = graph.network(images)
    network, found = slimmed(graph, beta=1e-9, norms="slice")
    assert found.subnetwork == graph.full()
    torch.testing.assert_close(network.eval()(images), expected, rtol=0, atol=0)


def kernels(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if value.ndim == 4}


def test_kept_weights_are_entries_of_the_original_ones() -> None:
    graph = graph_of()
    original = {name: value.clone() for name, value in kernels(graph.network).items()}
    network, found = slimmed(graph, beta=CUTS)
    for name, kernel in kernels(network).items():
        path = name.removesuffix(".weight")
        rows = list(found.subnetwork[path]) if path in counts(found) else slice(None)
        inner = path.replace("conv2", "conv1") if path.endswith("conv2") else ""
        columns = list(found.subnetwork[inner]) if inner else slice(None)
        assert torch.equal(kernel, original[name][rows][:, columns]), name


def test_norms_behind_cut_layers_start_afresh_and_the_others_stay() -> None:
    graph = graph_of()
    before = {name: value.clone() for name, value in graph.network.state_dict().items()}
    network, found = slimmed(graph, beta=CUTS)
    after, cut = network.state_dict(), [name for name in counts(found) if found.subnetwork[name] != graph.full()[name]]
    assert cut
    for name in cut:
        norm = name.replace("conv1", "bn1")
        assert after[f"{norm}.weight"].eq(1).all()
        assert after[f"{norm}.running_var"].eq(1).all()
        assert after[f"{norm}.bias"].eq(0).all()
        assert after[f"{norm}.running_mean"].eq(0).all()
        other = name.replace("conv1", "bn2")
        assert torch.equal(after[f"{other}.weight"], before[f"{other}.weight"])


def test_what_belongs_to_a_layer_that_keeps_all_filters_stays_and_biases_of_the_others_are_zero() -> None:
    graph = graph_of()
    before = {name: value.clone() for name, value in graph.network.state_dict().items()}
    network, found = slimmed(graph, beta=CUTS, late_beta=1e-9, late_from=4)
    whole = [name for name in counts(found) if found.subnetwork[name] == graph.full()[name]]
    assert len(whole) == 5
    for name in whole:
        norm = name.replace("conv1", "bn1")
        assert torch.equal(network.state_dict()[f"{norm}.weight"], before[f"{norm}.weight"])
    alike = Alike().eval()
    biases = {name: value.clone() for name, value in alike.named_parameters() if name.endswith("bias")}
    after = slimmed(analyse(alike, (3, 5, 5)), beta=0.5)[0].state_dict()
    assert after["same.bias"].eq(0).all()
    assert torch.equal(after["apart.bias"], biases["apart.bias"])


def test_each_layer_has_a_projection_of_its_own() -> None:
    graph = graph_of()
    for name in ("conv1", "conv2"):
        first, second = (graph.network.get_submodule(f"layer1.{block}.{name}") for block in (0, 1))
        second.weight.data.copy_(first.weight.data)
    network, found = slimmed(graph, beta=CUTS, initialisation="random_projection")
    assert found.subnetwork["layer1.0.conv1"] == found.subnetwork["layer1.1.conv1"]
    first, second = (kernels(network)[f"layer1.{block}.conv2.weight"] for block in (0, 1))
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_a_classifier_that_loses_inputs_starts_afresh_by_the_seed_alone() -> None:
    def head() -> tuple[Tensor, Tensor, list[int]]:
        graph = graph_of("vgg16", 32)
        original = graph.network.classifier.weight.detach().clone()
        torch.manual_seed(torch.seed() % 2**31)
        network, found = slimmed(graph, beta=CUTS)
        return network.classifier.weight.detach(), original, list(found.subnetwork["features.40"])

    first, original, kept = head()
    assert len(kept) < 512
    assert not torch.equal(first, original[:, kept])
    assert torch.equal(first, head()[0])


def test_initialisations_differ_in_weights_not_in_widths() -> None:
    modes = ("exemplar", "l1", "random_projection", "random")
    found = {mode: slimmed(graph_of(), beta=CUTS, initialisation=mode) for mode in modes}
    assert len({str(counts(decision)) for _, decision in found.values()}) == 1
    exemplar, _, projected, random = (kernels(found[mode][0]) for mode in modes)
    assert found["l1"][1].subnetwork != found["exemplar"][1].subnetwork
    assert found["random"][1].subnetwork == found["exemplar"][1].subnetwork
    shared = {name for name in exemplar if torch.equal(exemplar[name], projected[name])}
    assert shared == {name for name in exemplar if not name.endswith("conv2.weight")}, "only lost inputs are projected"
    assert not any(torch.equal(exemplar[name], random[name]) for name in exemplar)
    graph = graph_of()
    for name in counts(found["l1"][1]):
        norms = graph.network.get_submodule(name).weight.detach().double().abs().flatten(1).sum(1)
        kept = found["l1"][1].subnetwork[name]
        assert set(kept) == set(norms.argsort(descending=True)[: len(kept)].tolist())
    again = slimmed(graph_of(), beta=CUTS, initialisation="random_projection")[0]
    assert all(torch.equal(value, projected[name]) for name, value in kernels(again).items())


def test_a_projection_is_sparse_and_keeps_lengths_on_average() -> None:
    graph = graph_of("vgg16", 32)
    before = graph.network.features[40].weight.detach().clone()
    network, _ = slimmed(graph, beta=CUTS, initialisation="random_projection", skip=("features.40",))
    after = kernels(network)["features.40.weight"]
    assert after.shape[1] < before.shape[1]
    ratio = after.flatten(1).square().sum(1).mean() / before.flatten(1).square().sum(1).mean()
    assert float(ratio) == pytest.approx(1, abs=0.2)


def test_one_thread_and_four_give_the_same_decisions() -> None:
    one, four = (list(opened(graph_of(), threads=threads, beta=CUTS, betas=(0.95, 0.99)).run()) for threads in (1, 4))
    assert one == four
    assert [decision.own.get("beta") for decision in one] == [None, 0.95, 0.99, CUTS]
    for done in range(1, 5):
        assert list(opened(graph_of(), beta=CUTS, betas=(0.95, 0.99)).run(one[:done])) == one[done:]


def test_decisions_are_rebuilt_from_their_records_also_where_a_later_one_keeps_more() -> None:
    graph = graph_of()
    made = list(opened(graph, beta=1e-9, betas=(CUTS, 0.99)).run())
    assert made[2].subnetwork != made[3].subnetwork == graph.full()
    assert decisions_from_records([decision.to_record() for decision in made], graph.full()) == made
    assert list(opened(graph, beta=1e-9, betas=(CUTS, 0.99)).run(made[:3])) == made[3:]


def test_the_beta_of_a_budget_is_the_smallest_that_meets_it() -> None:
    graph = graph_of()
    found = decided(graph, reduction=0.1)
    assert found.macs <= 0.9 * cost(graph, graph.full()).macs
    wider = decided(graph, beta=found.own["beta"] - BETA_RESOLUTION)
    assert wider.macs > 0.9 * cost(graph, graph.full()).macs
    assert decided(graph, beta=found.own["beta"]).subnetwork == found.subnetwork


def test_a_budget_that_no_beta_meets_is_refused_with_what_is_left() -> None:
    graph = graph_of()
    least = decided(graph, beta=1.0).macs
    with pytest.raises(BudgetError, match=f"beta 1 still keeps {least:,}"):
        decided(graph, budget=least - 1)


def test_late_layers_have_their_own_beta_and_1x1_convolutions_only_on_request() -> None:
    def betas(**fields: Any) -> list[float]:
        found = decided(graph_of("resnet50", 32), beta=0.9, late_beta=0.99, skip=("conv1",), **fields)
        return [layer["beta"] for layer in found.own["layers"].values()]

    assert betas(late_from=26) == [0.9] * 26 + [0.9, 0.99] * 3
    assert betas(late_from=26, late_first_conv=True) == [0.9] * 26 + [0.99] * 6


class Alike(nn.Module):
    """Two convolutions, the first with equal filters, the second with filters that all point elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.apart = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.one, self.head = nn.Conv2d(4, 1, 1), nn.Conv2d(1, 2, 1)
        self.same.weight.data[:] = self.same.weight.data[:1]
        self.apart.weight.data[:] = torch.eye(4, 6)[:, :, None, None]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.one(self.apart(self.same(images).relu()).relu())).mean((2, 3))
        return logits


def test_layers_that_keep_one_filter_or_all_are_named_with_the_betas_that_would_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = decided(analyse(Alike().eval(), (3, 5, 5)), beta=0.5)
    assert counts(found) == {"same": 1, "apart": 4, "one": 1}, "a layer of one filter is left, and not complained of"
    assert any("keep a single filter: same (at every beta tried)" in line for line in caplog.messages)
    assert any("keep all of its filters: apart (" in line for line in caplog.messages)
    assert not any("one (" in line for line in caplog.messages)


def test_weights_that_are_no_numbers_are_named_by_layer() -> None:
    graph = graph_of()
    graph.network.get_submodule("layer2.1.conv1").weight.data[3, 0, 0, 0] = float("nan")
    with pytest.raises(NetworkError, match=r"layer2\.1\.conv1: weights: expected finite numbers"):
        decided(graph, beta=0.8)


@pytest.mark.parametrize(
    ("skip", "words"),
    [
        (["nothing*"], r"search\.skip: expected names of channel groups, found 'nothing\*', which is the name of none"),
        (["layer*.conv1"], r"expected a channel group that may be cut, found none: all 9 are in search\.skip"),
    ],
)
def test_what_is_left_alone_must_exist_and_leave_something(skip: Sequence[str], words: str) -> None:
    with pytest.raises(NetworkError, match=words):
        opened(graph_of(), beta=0.8, skip=tuple(skip))


def test_a_network_without_a_private_channel_group_is_refused() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head((self.a(images) + self.b(images)).mean((2, 3)))
            return logits

    with pytest.raises(NetworkError, match="found none: all 1 have several producers"):
        opened(analyse(Sum().eval(), (3, 4, 4)), beta=0.8)
