"""Importance criteria against naive loops, and searches by each on a tiny network."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.maths.knowledge import cross_entropy_terms
from ekgsearch.methods.base import (
    Candidate,
    Evaluation,
    GroupScores,
    mean_over_batches,
    sum_over_batches,
)
from ekgsearch.methods.baselines.uniform import uniform_width
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.criteria import channel_scores
from ekgsearch.methods.ekg.random_walk import RandomChoice
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch, evaluations
from ekgsearch.methods.networks import NaiveNetworks
from ekgsearch.methods.rules import Criterion, Rules, SearchTeacher
from ekgsearch.records import Subnetwork


class Residual(nn.Module):
    """Two convolutions that write into one stream, a private one, a depthwise one and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.outer = nn.Conv2d(5, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        stem = torch.relu(self.stem(images))
        stream = torch.relu(stem + self.outer(torch.relu(self.norm(self.inner(stem)))))
        return self.head(torch.relu(self.up(stream)).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    network = Residual().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return analyse(network, (3, 8, 8))


@pytest.fixture(scope="module")
def batches() -> list[SearchBatch]:
    generator = torch.Generator().manual_seed(1)
    sizes = (9, 7, 4)
    return [
        SearchBatch(
            index,
            torch.randint(0, 256, (size, 3, 8, 8), generator=generator, dtype=torch.uint8),
            torch.randint(0, 3, (size,), generator=generator),
        )
        for index, size in enumerate(sizes)
    ]


def normalise(pixels: Tensor) -> Tensor:
    return pixels.float() / 64 - 2


class Parts:
    """Evaluators that own different batches, as workers would."""

    def __init__(self, parts: Sequence[BatchEvaluator]) -> None:
        self.parts = parts

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        return mean_over_batches({k: v for part in self.parts for k, v in part.begin(interim).items()})

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        return sum_over_batches({k: v for part in self.parts for k, v in part.scores(current, count).items()})

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        merged = {k: v for part in self.parts for k, v in part.evaluate(current, candidates).items()}
        return evaluations(merged, len(candidates))

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        raise AssertionError("the naive networks leave nothing to settle")


def evaluator(graph: ChannelGraph, batches: Sequence[SearchBatch], rules: Rules) -> BatchEvaluator:
    return BatchEvaluator(NaiveNetworks(graph), normalise, batches, 20, rules)


def search(graph: ChannelGraph, parts: Parts) -> EkgSearch:
    budget = set_budget(graph, reduction=0.5, absolute=None, unit="macs", counter="macs")
    return EkgSearch(graph, parts, budget, EkgSettings(step=0.3))


def measured(graph: ChannelGraph, subnetwork: Subnetwork) -> tuple[int, int]:
    costs = cost(graph, subnetwork, "macs")
    return costs.macs, costs.params


def narrowed(graph: ChannelGraph) -> Subnetwork:
    return graph.full().replace("stem", [0, 2, 3, 5]).replace("up", [1, 2, 3])


def naive_filters(graph: ChannelGraph, sub: Subnetwork, name: str) -> list[dict[int, list[float]]]:
    """Weights of every kept filter of every producer, from the kernels masked by hand and brought to their norm."""
    network = graph.network
    masked = MaskedNetwork(graph).weights(sub)
    by_producer = {"stem": ["stem", "outer"], "inner": ["inner"], "up": ["up"]}[name]
    found = []
    for path in by_producer:
        kernel = masked[path]
        assert kernel.norm().item() == pytest.approx(network.get_submodule(path).weight.norm().item(), rel=1e-5)
        row = (
            (lambda kernel, channel: kernel[:, channel]) if path == "up" else (lambda kernel, channel: kernel[channel])
        )
        found.append({channel: row(kernel, channel).double().flatten().tolist() for channel in sub[name]})
    return found


@pytest.mark.parametrize("criterion", ["l1", "fpgm"])
def test_filter_criteria_equal_loops_over_the_filters(criterion: Criterion, graph: ChannelGraph) -> None:
    for sub in (graph.full(), narrowed(graph)):
        scores = channel_scores(Rules(criterion=criterion), graph, sub, 1)
        assert [group.name for group in graph.groups] == ["stem", "inner", "up"]
        for group in graph.groups:
            for channel in range(group.size):
                expected = 0.0
                for filters in naive_filters(graph, sub, group.name):
                    if channel not in filters:
                        continue
                    if criterion == "l1":
                        expected += sum(abs(weight) for weight in filters[channel])
                    else:
                        expected += sum(math.dist(filters[channel], other) for other in filters.values())
                assert scores[group.name][channel] == pytest.approx(expected, rel=1e-12, abs=0)


def test_random_scores_depend_on_seed_and_iteration_and_spare_no_removed_channel(graph: ChannelGraph) -> None:
    sub = narrowed(graph)
    first, again = (channel_scores(Rules(criterion="random", seed=3), graph, sub, 1) for _ in range(2))
    others = [channel_scores(Rules(criterion="random", seed=seed), graph, sub, it) for seed, it in ((4, 1), (3, 2))]
    for name, values in first.items():
        assert (values == again[name]).all()
        assert ((values > 0) == [channel in sub[name] for channel in range(len(values))]).all()
        assert all((values != other[name]).any() for other in others)


def test_random_scores_differ_between_groups_and_are_never_those_of_a_removed_channel(
    graph: ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = channel_scores(Rules(criterion="random"), graph, graph.full(), 1)
    assert len({values[:4].tobytes() for values in drawn.values()}) == len(drawn)
    monkeypatch.setattr("ekgsearch.methods.criteria.uniforms", lambda places, *_: torch.zeros(len(places), 1))
    for values in channel_scores(Rules(criterion="random"), graph, graph.full(), 1).values():
        assert (values > 0).all()


def test_a_random_choice_goes_by_iteration_and_channel_group(graph: ChannelGraph) -> None:
    choice, full = RandomChoice(graph, Rules(criterion="random", seed=3)), graph.full()
    candidates = [Candidate(group.name, full, Fraction(1, 2)) for group in graph.groups]
    draws = []
    for iteration in (1, 2):
        choice.scores(full, iteration)
        draws.append([evaluation.score for evaluation in choice.evaluate(full, candidates)])
        assert [evaluation.score for evaluation in choice.settle(candidates[::-1])] == draws[-1][::-1]
        assert choice.evaluate(full, candidates[1:])[0].score == draws[-1][1]
    assert len({*draws[0], *draws[1]}) == 6


@pytest.mark.parametrize("reduction", [0.2, 0.5, 0.8])
def test_a_uniform_network_loses_one_channel_after_another_where_the_largest_share_is_left(
    graph: ChannelGraph, reduction: float
) -> None:
    budget = set_budget(graph, reduction=reduction, absolute=None, unit="macs", counter="macs")
    expected = graph.full()
    while not budget.is_met(*measured(graph, expected)):
        shares = {group.name: Fraction(len(expected[group.name]), group.size) for group in graph.groups}
        name = max(shares, key=shares.__getitem__)
        parts = naive_filters(graph, graph.full(), name)
        norms = {channel: sum(sum(map(abs, part[channel])) for part in parts) for channel in expected[name]}
        expected = expected.replace(name, set(expected[name]) - {min(norms, key=norms.__getitem__)})
    assert uniform_width(graph, budget) == expected


def test_a_uniform_network_keeps_a_channel_of_every_group() -> None:
    """A share below one half leaves the group of two channels with one."""
    layers = [
        nn.Conv2d(3, 2, 3),
        nn.ReLU(),
        nn.Conv2d(2, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    graph = analyse(nn.Sequential(*layers).eval(), (3, 8, 8))
    narrow = graph.full().replace("0", [0]).replace("2", [0, 1, 2])
    budget = set_budget(graph, reduction=None, absolute=measured(graph, narrow)[0], unit="macs", counter="macs")
    assert [len(kept) for _, kept in uniform_width(graph, budget).kept] == [1, 3]


def test_equal_filters_go_from_the_last_one_on() -> None:
    graph = analyse(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Flatten()).eval(), (3, 1, 1))
    graph.network.get_submodule("0").weight.data.fill_(1)
    budget = set_budget(graph, reduction=0.4, absolute=None, unit="macs", counter="macs")
    assert uniform_width(graph, budget)["0"] == (0, 1)


def test_the_loss_criterion_is_the_derivative_of_the_loss_alone(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    measured = evaluator(graph, batches, Rules(criterion="taylor_loss"))
    measured.begin([graph.full()])
    found = sum_over_batches(measured.scores(narrowed(graph), 2))
    masked = MaskedNetwork(graph)
    expected = []
    for batch in batches:

        def loss(logits: Tensor, batch: SearchBatch = batch) -> Tensor:
            return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum") / 20

        by_group = masked.scores(normalise(batch.pixels), loss, narrowed(graph))
        expected.append({name: values.numpy() for name, values in by_group.items()})
    for name, values in sum_over_batches(dict(enumerate(expected))).items():
        assert found[name] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize("teacher", get_args(SearchTeacher))
def test_the_score_compares_with_the_chosen_teacher(
    teacher: SearchTeacher, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    measured = evaluator(graph, batches, Rules(search_teacher=teacher))
    full, second = graph.full(), narrowed(graph)
    measured.begin([full])
    measured.scores(full, 1)
    measured.scores(second, 2)
    masked, total = MaskedNetwork(graph), 0.0
    for batch in batches:
        images = normalise(batch.pixels)
        first, logits = (masked.forward(images, sub).double() for sub in (full, second))
        knowledge = first if teacher == "single" else (first + logits) / 2
        to_label, to_teacher = cross_entropy_terms(logits, batch.labels, knowledge)
        total += float(to_label.sum()) + (0.0 if teacher == "none" else float(to_teacher.sum()))
    candidate = Candidate("stem", second, 1)  # type: ignore[arg-type]
    (found,) = evaluations(measured.evaluate(second, [candidate]), 1)
    assert found.score == pytest.approx(total / 20, rel=1e-6)


CHOICES = [Rules(criterion=criterion, seed=1) for criterion in get_args(Criterion)] + [
    Rules(search_teacher=teacher) for teacher in ("none", "single")
]


def test_choices_lead_to_different_searches_that_do_not_depend_on_who_owns_the_batches(
    graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    records = []
    for rules in CHOICES:
        one = search(graph, Parts([evaluator(graph, batches, rules)]))
        two = search(graph, Parts([evaluator(graph, batches[1:2], rules), evaluator(graph, batches[::2], rules)]))
        made = [decision.to_record() for decision in one.run()]
        assert made == [decision.to_record() for decision in two.run()]
        continued = list(two.run(list(itertools.islice(one.run(), 3))))
        assert made[3:] == [decision.to_record() for decision in continued]
        records.append(str(made))
    assert len(set(records)) >= len(CHOICES) - 1  # two criteria may agree on so few channels
