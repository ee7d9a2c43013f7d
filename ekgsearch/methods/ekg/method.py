"""The search of EKG as a job asks for it: settings, racing, and what depends on the budget."""

import logging
from collections.abc import Iterator, Sequence

from torch import nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.slim import slim
from ekgsearch.methods.base import BatchwiseEvaluator, Decision, Evaluator, Materials
from ekgsearch.methods.ekg.racing import Racing
from ekgsearch.methods.ekg.reach import depends_on_budget
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings
from ekgsearch.methods.ekg.section import EkgSection
from ekgsearch.records import Subnetwork

log = logging.getLogger(__name__)


def ekg_settings(section: EkgSection, tie_tolerance: float) -> EkgSettings:
    """Choices of a search, whose evaluator's rounding could decide within a share of the lowest score."""
    return EkgSettings(
        step=section.step,
        trim=section.trim,
        quirks=frozenset(section.quirks),
        width_multiple=section.width_multiple,
        max_candidates=section.max_candidates,
        shortlist=section.shortlist,
        compete=section.compete,
        tie_tolerance=tie_tolerance,
    )


class Ekg:
    """The ensemble knowledge guided search of a job; see `methods.base.Search`."""

    def __init__(self, section: EkgSection, materials: Materials) -> None:
        self._section = section
        self._materials = materials
        self._settings = ekg_settings(section, materials.tie_tolerance)

    def run(self, made: Sequence[Decision] = ()) -> Iterator[Decision]:
        """Yield every decision as it is made; see `EkgSearch.run`."""
        evaluator = self._materials.evaluator()
        racing = self._racing(evaluator)
        yield from self._search(racing or evaluator).run(made)
        if racing is not None:
            log.info("racing evaluated %.1f %% of the candidates' batches", 100 * racing.share_evaluated)

    def is_over(self, made: Sequence[Decision]) -> bool:
        """Whether the budget is met."""
        return bool(made) and self._materials.budget.is_met(made[-1].macs, made[-1].params)

    def depends_on_budget(self, made: Sequence[Decision]) -> bool:
        """Whether the budget may have a say in the decision after these."""
        materials = self._materials
        return depends_on_budget(materials.graph, materials.budget, self._settings, made, materials.groups)

    def decide_after(self, made: Sequence[Decision]) -> Decision:
        """The decision that follows from these, by all images."""
        search = self._search(self._materials.evaluator())
        return search.decide(made[-1], search.rates_after(made))

    def slim(self, graph: ChannelGraph, subnetwork: Subnetwork) -> nn.Module:
        """The weights of the channels that stay, each kernel at its uncut norm."""
        return slim(graph, subnetwork)

    def _search(self, evaluator: Evaluator) -> EkgSearch:
        materials = self._materials
        return EkgSearch(materials.graph, evaluator, materials.budget, self._settings, materials.groups)

    def _racing(self, evaluator: BatchwiseEvaluator) -> Racing | None:
        """The evaluator that lets candidates race, if the job asks for it."""
        if self._section.racing is None:
            return None
        return Racing(evaluator, self._materials.batches, self._section.racing, self._section.nominal_batch)
