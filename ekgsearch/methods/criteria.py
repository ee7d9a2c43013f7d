"""Importance criteria: one number per channel, from the reward's gradient, from the kernels, or at random."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.kernels import axes
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.data.draws import uniforms
from ekgsearch.errors import NetworkError
from ekgsearch.methods.base import GroupScores
from ekgsearch.methods.rules import Rules
from ekgsearch.records import Subnetwork


def channel_scores(rules: Rules, graph: ChannelGraph, current: Subnetwork, iteration: int) -> GroupScores:
    """Score every channel by a criterion that looks at no image; removed channels get 0.

    Args:
        rules: with a criterion of `OF_FILTERS`, or `random`.
        graph: analysed network.
        current: sub-network whose masked kernels are scored.
        iteration: search iteration that the scores are for, from 1; part of the key of random draws.
    """
    if rules.criterion == "random":
        return random_scores(graph, current, rules.seed, iteration)
    return filter_scores(OF_FILTERS[rules.criterion], graph, current)


def filter_scores(
    criterion: Callable[[Tensor], Tensor], graph: ChannelGraph, current: Subnetwork
) -> dict[str, NDArray[np.float64]]:
    """Apply a criterion on filters to the masked kernels of a sub-network, summed over a group's producers.

    Args:
        criterion: maps the kept filters of one layer (kept, weights per filter), float64, to their scores (kept,).
        graph: analysed network.
        current: the sub-network.

    Returns:
        Scores (size,) by channel group; removed channels get 0.
    """
    weights = MaskedNetwork(graph).weights(current)
    found = {}
    for group in graph.groups:
        kept = torch.tensor(current[group.name])
        total = torch.zeros(group.size, dtype=torch.float64)
        for filters in producer_filters(graph, group, weights):
            total[kept] += criterion(filters[kept])
        found[group.name] = total.numpy()
    return found


def producer_filters(graph: ChannelGraph, group: ChannelGroup, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Filters of a channel group, one matrix (size, weights per channel), float64 on the CPU, for each producer.

    Args:
        graph: analysed network.
        group: the channel group.
        weights: kernels by layer path.
    """
    filters = []
    for producer in group.producers:
        axis = axes(graph.layers[producer.layer])[0]
        assert axis is not None, "a producer has an output axis"
        rows = weights[producer.layer].detach().double().cpu().movedim(axis, 0).flatten(1)
        filters.append(rows[torch.tensor(producer.positions)].flatten(1))
    return filters


def l1_scores(filters: Tensor) -> Tensor:
    """Sum of the absolute weights of each filter: (n, d) to (n,)."""
    return filters.abs().sum(1)


def l2_scores(filters: Tensor) -> Tensor:
    """Euclidean norm of each filter: (n, d) to (n,)."""
    norms: Tensor = torch.linalg.vector_norm(filters, dim=1)
    return norms


def fpgm_scores(filters: Tensor) -> Tensor:
    """Summed Euclidean distances of each filter to all others: (n, d) float64 to (n,); small means redundant.

    Distances are taken from differences, not from inner products, which would cancel for filters that are alike.
    Source: FPGM (arXiv 1811.00250), eq. 5.
    """
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


OF_FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"l1": l1_scores, "l2": l2_scores, "fpgm": fpgm_scores}
"""Criteria that look at the filters of a layer, by name."""


def norm_scale_scores(graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> GroupScores:
    """Sum the absolute scales that batch norms give each channel, over the norms of its channel group.

    Source: network slimming (arXiv 1708.06519), whose training with a penalty on the scales is not part of it.

    Args:
        graph: analysed network.
        groups: channel groups that are scored.

    Raises:
        NetworkError: a channel group has no batch norm with a scale.
    """
    found = {}
    for group in groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        scales = 0
        for member in group.norms:
            norm = graph.layers[member.layer].module
            if isinstance(norm, _BatchNorm) and norm.affine:
                total += norm.weight.detach().double().abs().cpu()[torch.tensor(member.positions)].sum(1)
                scales += 1
        if not scales:
            raise NetworkError(
                f"channel group {group.name!r}: expected a batch norm with a scale for each channel, found none; leave "
                "it alone (search.skip), or choose a search.method that looks at filters, such as l2"
            )
        found[group.name] = total.numpy()
    return found


def random_scores(graph: ChannelGraph, current: Subnetwork, seed: int, iteration: int) -> GroupScores:
    """Draw a number in (0, 1] for every kept channel, a function of seed, iteration, group and channel alone."""
    found = {}
    for index, group in enumerate(graph.groups):
        draws = 1 - uniforms(torch.arange(group.size), 1, seed, iteration, index)[:, 0]
        kept = torch.zeros(group.size, dtype=torch.float64)
        kept[list(current[group.name])] = 1
        found[group.name] = (draws * kept).numpy()
    return found
