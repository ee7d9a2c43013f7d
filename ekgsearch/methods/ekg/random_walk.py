"""Random sub-networks: the search loop with a random shortlist and a random choice."""

from collections.abc import Sequence

import torch

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.data.draws import uniforms
from ekgsearch.methods.base import Candidate, Evaluation, GroupScores
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.criteria import channel_scores
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings
from ekgsearch.methods.rules import Criterion, Rules
from ekgsearch.records import Subnetwork

_CHOICE = 1 << 32  # part of the key of the choice, apart from that of the channel scores


class RandomChoice:
    """Takes candidates by lot, without a look at an image."""

    def __init__(self, graph: ChannelGraph, rules: Rules) -> None:
        self._graph = graph
        self._rules = rules
        self._places = {group.name: place for place, group in enumerate(graph.groups)}
        self._iteration = 0

    def begin(self, interim: Sequence[Subnetwork]) -> Evaluation:
        """Nothing is measured."""
        return Evaluation(0.0, 0.0, 0, 1)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        """Channel scores by a criterion that looks at no image."""
        self._iteration = count
        return channel_scores(self._rules, self._graph, current, count)

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Draw a score in [0, 1) for each candidate, by its channel group."""
        return self.settle(candidates)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """The same draws again."""
        places = torch.tensor([self._places[candidate.group] for candidate in candidates])
        draws = uniforms(places, 1, self._rules.seed, self._iteration, _CHOICE)[:, 0]
        return [Evaluation(0.0, draw, 0, 1) for draw in draws.tolist()]


def random_subnetwork(
    graph: ChannelGraph, budget: Budget, *, criterion: Criterion, seed: int, settings: EkgSettings
) -> Subnetwork:
    """Cut channel groups by lot until a budget is met.

    Args:
        graph: analysed network.
        budget: what to meet.
        criterion: which channels of a group go first, and which groups are on the shortlist: `random`, or `l1` or
            `fpgm` for better networks.
        seed: of all draws.
        settings: step, trim and quirks of the loop.
    """
    choice = RandomChoice(graph, Rules(criterion=criterion, seed=seed))
    *_, last = EkgSearch(graph, choice, budget, settings).run()
    return last.subnetwork
