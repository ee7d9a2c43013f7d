"""One-shot baselines that remove the channels that rank last by a criterion."""

from collections.abc import Callable
from typing import Any

from ekgsearch.methods.base import BatchwiseEvaluator, GroupScores, Materials
from ekgsearch.methods.baselines.ranking import cut_down, places_in_group, worst_first
from ekgsearch.methods.baselines.section import RankingSection, RescoringSection
from ekgsearch.methods.criteria import OF_FILTERS, filter_scores, norm_scale_scores, random_scores
from ekgsearch.methods.one_shot import OneShot
from ekgsearch.records import Subnetwork


class ByCriterion(OneShot):
    """Removes channels in the order of their scores; see `methods.base.Search`.

    In a global ranking, scores of filters count as multiples of their mean over the channels that the channel group
    keeps: the sums themselves grow with the weights of a filter, the filters of a layer and the producers of a channel
    group. Changes of the loss and scales of batch norms are compared as they are.
    """

    def __init__(self, section: RankingSection, materials: Materials) -> None:
        super().__init__(materials)
        self._section = section

    def cut(self, current: Subnetwork) -> tuple[Subnetwork, dict[str, Any]]:
        """The sub-network, and how often channels were scored.

        Raises:
            NetworkError: the criterion needs batch norms, and there are none.
        """
        materials, section = self.materials, self._section
        groups, budget = materials.groups, materials.budget
        full = budget.measured(*materials.costs(materials.graph.full()))
        step = section.score_every * full if isinstance(section, RescoringSection) else full
        score, times, left = self._criterion(current), 0, budget.measured(*materials.costs(current))
        while left > budget.limit:
            times += 1
            scores = score(current, times)
            if section.ranking == "per_layer":
                scores, step = places_in_group(scores, groups), full
            limit = max(budget.limit, left - step)
            current = cut_down(materials.graph, budget, limit, current, worst_first(scores, groups, current))
            left = budget.measured(*materials.costs(current))
        return current, {"times_scored": times}

    def _criterion(self, start: Subnetwork) -> Callable[[Subnetwork, int], GroupScores]:
        """What scores the channels of a sub-network, by how many times it has been asked, from 1."""
        materials, method = self.materials, self._section.method
        if method == "taylor":
            return _taylor(materials.evaluator(), start)
        graph = materials.open_graph()
        if method == "random":
            return lambda _, times: random_scores(graph, graph.full(), materials.seed, times)
        if method == "bn_scale":
            return lambda *_: norm_scale_scores(graph, materials.groups)
        return lambda current, _: relative(filter_scores(OF_FILTERS[method], graph, current), current)


def relative(scores: GroupScores, current: Subnetwork) -> GroupScores:
    """Divide scores by their mean over the channels that each channel group keeps."""
    found = {}
    for name, values in scores.items():
        mean = values[list(current[name])].mean()
        found[name] = values / mean if mean > 0 else values
    return found


def _taylor(evaluator: BatchwiseEvaluator, start: Subnetwork) -> Callable[[Subnetwork, int], GroupScores]:
    """Scores on the search subset, under the masks of the sub-network."""
    evaluator.begin([start])
    return evaluator.scores
