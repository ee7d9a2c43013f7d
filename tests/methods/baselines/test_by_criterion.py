"""Cuts by a criterion against naive loops that remove one channel after another."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from local_evaluator import LocalEvaluator
from torch import Tensor, nn

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.errors import NetworkError
from ekgsearch.experiment import Job
from ekgsearch.methods.base import Decision, GroupScores, Materials, Search, sum_over_batches
from ekgsearch.methods.baselines.section import (
    CriterionSection,
    RescoringSection,
    TaylorSection,
    UniformSection,
)
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.methods.criteria import random_scores
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch
from ekgsearch.methods.networks import FastNetworks
from ekgsearch.records import Subnetwork

SECTIONS: dict[str, type[Any]] = {kind.model_fields["method"].default: kind for kind in get_args(CriterionSection)}
SEED = 5


def opened(graph: ChannelGraph, batches: list[SearchBatch], method: str, **fields: Any) -> tuple[Search, Materials]:
    section = UniformSection(**fields) if method == "uniform" else SECTIONS[method](**fields)
    groups = chosen_groups(graph, section)
    rules = section.rules(SEED) if isinstance(section, TaylorSection) else None

    def evaluator() -> LocalEvaluator:
        assert rules is not None, "only taylor looks at images"
        parts = ([batches[1]], [batches[0], batches[2]])
        return LocalEvaluator(
            [BatchEvaluator(FastNetworks(graph), lambda images: images, part, 41, rules) for part in parts]
        )

    materials = Materials(
        graph=graph,
        groups=groups,
        open_graph=lambda: graph,
        budget=set_budget(
            graph,
            reduction=section.reduction,
            absolute=section.budget,
            unit=section.unit,
            counter=section.counter,
            groups=groups,
        ),
        seed=SEED,
        threads=1,
        evaluator=evaluator,  # type: ignore[arg-type]
        batches=range(len(batches)),
        tie_tolerance=0.0,
    )
    return section.open(materials), materials


def decided(graph: ChannelGraph, batches: list[SearchBatch], method: str, **fields: Any) -> Decision:
    return list(opened(graph, batches, method, **fields)[0].run())[-1]


def by_filters(criterion: Callable[[Tensor, Tensor], float], graph: ChannelGraph, kept: Subnetwork) -> GroupScores:
    """Scores of a criterion on one filter and all that are kept, by loops, as multiples of the mean of a group."""
    kernels = MaskedNetwork(graph).weights(kept)
    found = {}
    for group in graph.groups:
        values = torch.zeros(group.size, dtype=torch.float64)
        for producer in group.producers:
            rows = torch.stack([kernels[producer.layer].double()[place].flatten() for (place,) in producer.positions])
            for channel in kept[group.name]:
                values[channel] += criterion(rows[channel], rows[list(kept[group.name])])
        mean = sum(float(values[channel]) for channel in kept[group.name]) / len(kept[group.name])
        found[group.name] = values.numpy() / mean
    return found


def by_norms(graph: ChannelGraph) -> GroupScores:
    found = {}
    for group in graph.groups:
        values = torch.zeros(group.size, dtype=torch.float64)
        for member in group.norms:
            scales = graph.network.get_submodule(member.layer).weight.detach().double()
            for channel, places in enumerate(member.positions):
                values[channel] += sum(abs(float(scales[place])) for place in places)
        found[group.name] = values.numpy()
    return found


def by_loss(graph: ChannelGraph, batches: list[SearchBatch], kept: Subnetwork) -> GroupScores:
    scores = {}
    for batch in batches:

        def loss(logits: Tensor, batch: SearchBatch = batch) -> Tensor:
            return nn.functional.cross_entropy(logits, batch.labels, reduction="sum") / 41

        by_group = MaskedNetwork(graph).scores(batch.pixels, loss, kept)
        scores[batch.index] = {name: values.numpy() for name, values in by_group.items()}
    return sum_over_batches(scores)


def naive_scores(method: str, graph: ChannelGraph, batches: list[SearchBatch], kept: Subnetwork) -> GroupScores:
    match method:
        case "l1":
            return by_filters(lambda one, _: float(one.abs().sum()), graph, kept)
        case "l2":
            return by_filters(lambda one, _: float(one.square().sum().sqrt()), graph, kept)
        case "fpgm":
            return by_filters(lambda one, others: float((others - one).square().sum(1).sqrt().sum()), graph, kept)
        case "bn_scale":
            return by_norms(graph)
        case "taylor":
            return by_loss(graph, batches, kept)
    return random_scores(graph, graph.full(), SEED, 1)


def naive(method: str, materials: Materials, batches: list[SearchBatch], step: float) -> Subnetwork:
    """Remove the channel of the lowest score, whichever channel group it is in, and count the cost each time."""
    graph, budget, current = materials.graph, materials.budget, materials.graph.full()

    def left() -> int:
        return budget.measured(*materials.costs(current))

    full = left()
    while left() > budget.limit:
        scores = naive_scores(method, graph, batches, current)
        end = max(budget.limit, left() - step * full)
        while left() > end:
            candidates = [
                (scores[group.name][channel], place, -channel)
                for place, group in enumerate(materials.groups)
                for channel in current[group.name]
                if len(current[group.name]) > 1
            ]
            _, place, channel = min(candidates)
            name = materials.groups[place].name
            current = current.replace(name, [kept for kept in current[name] if kept != -channel])
    return current


@pytest.mark.parametrize("groups", ["all", "private"])
@pytest.mark.parametrize("method", SECTIONS)
def test_a_global_ranking_is_that_of_a_loop_over_single_channels(
    method: str, groups: str, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    fields = {"reduction": 0.14, "groups": groups}
    search, materials = opened(graph, batches, method, **fields)
    made = list(search.run())
    step = 0.025 if issubclass(SECTIONS[method], RescoringSection) else 1
    assert made[1].subnetwork == naive(method, materials, batches, step)
    assert made[1].own["times_scored"] in ((1,) if step == 1 else (5, 6))
    assert search.is_over(made)
    continued = list(opened(graph, batches, method, **fields)[0].run(made[:1]))
    assert [decision.to_record() for decision in continued] == [made[1].to_record()]


@pytest.mark.parametrize(
    "fields",
    [
        {"reduction": 0.6, "unit": "params", "counter": "ekg", "score_every": 0.2},
        {"reduction": 0.2, "groups": "private", "skip": ("layer1.*",), "ranking": "per_layer"},
        {"budget": 90_000, "score_every": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["uniform", *SECTIONS])
def test_the_budget_is_met_and_not_without_the_last_channel(
    method: str, fields: dict[str, Any], graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    known = (UniformSection if method == "uniform" else SECTIONS[method]).model_fields
    given = {name: value for name, value in fields.items() if name in known}
    search, materials = opened(graph, batches, method, **given)
    found = list(search.run())[-1].subnetwork
    budget, cut = materials.budget, {group.name for group in materials.groups}
    assert budget.is_met(*materials.costs(found))
    one_more = []
    for group in graph.groups:
        gone = set(range(group.size)) - set(found[group.name])
        assert found[group.name]
        assert not gone or group.name in cut
        one_more += [found.replace(group.name, [*found[group.name], min(gone)])] if gone else []
    assert not all(budget.is_met(*materials.costs(wider)) for wider in one_more)


@pytest.mark.parametrize("method", SECTIONS)
def test_per_layer_every_group_loses_the_same_share_and_its_lowest_scores(
    method: str, graph: ChannelGraph, batches: list[SearchBatch]
) -> None:
    found = decided(graph, batches, method, reduction=0.5, ranking="per_layer")
    scores = naive_scores(method, graph, batches, graph.full())
    shares = set()
    for group in graph.groups:
        kept = found.subnetwork[group.name]
        best = sorted(range(group.size), key=lambda channel: (-scores[group.name][channel], channel))
        assert sorted(best[: len(kept)]) == list(kept), group.name
        shares |= {len(kept) / group.size}
    assert max(shares) - min(shares) <= 1 / 16 + 1e-9, "channel groups of 16 channels and more"
    assert found.own["times_scored"] == 1


def test_scoring_again_more_or_less_often_leads_elsewhere(graph: ChannelGraph, batches: list[SearchBatch]) -> None:
    found = {every: decided(graph, batches, "l2", reduction=0.4, score_every=every) for every in (0.025, 0.1, 0.9)}
    assert [decision.own["times_scored"] for decision in found.values()] == [15, 4, 1]
    assert len({decision.subnetwork for decision in found.values()}) == 3


def test_a_random_choice_goes_by_the_seed_and_says_so() -> None:
    draws = {name for name, kind in SECTIONS.items() if kind(reduction=0.3).draws_at_random}
    assert draws == {"random"}


def test_batch_norm_scales_need_a_batch_norm_with_a_scale(batches: list[SearchBatch]) -> None:
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    graph = analyse(network.eval(), (3, 8, 8))
    with pytest.raises(
        NetworkError, match=r"channel group '2': expected a batch norm with a scale .* found none; leave"
    ):
        decided(graph, batches, "bn_scale", reduction=0.3)
    found = decided(graph, batches, "bn_scale", reduction=0.1, skip=("2",))
    assert found.macs <= 0.9 * cost(graph, graph.full()).macs
    assert len(found.subnetwork["2"]) == 4


@pytest.mark.parametrize("method", SECTIONS)
def test_a_ranking_that_scores_once_takes_no_interval(method: str) -> None:
    fields = {"method": method, "reduction": 0.3, "ranking": "per_layer", "score_every": 0.1}
    words = (
        "search.score_every = 0.1: search.ranking per_layer scores once"
        if issubclass(SECTIONS[method], RescoringSection)
        else "score_every"
    )
    with pytest.raises(ValueError, match=words):
        Job.model_validate({"output": "run", "data": {"name": "digits"}, "search": fields})
