"""Decisions far above a budget do not depend on it: a search to a larger reduction has those of every smaller one."""

from pathlib import Path

import pytest
from small_search import SmallSearch

from ekgsearch.methods.base import Decision
from ekgsearch.methods.ekg.method import ekg_settings
from ekgsearch.methods.ekg.reach import depends_on_budget
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.workers.backend import InProcessBackend


def searched(folder: Path, *settings: str) -> tuple[SmallSearch, list[Decision]]:
    folder.mkdir()
    small = SmallSearch.make(folder, ("search.batch_size=60", "search.images_per_class=6", *settings))
    setup = small.setup
    with InProcessBackend().team(small.workload, setup.search_spec) as team:
        search = EkgSearch(
            setup.graph, team, setup.budget, ekg_settings(setup.job.search, setup.search_spec.tie_tolerance)
        )
        return small, list(search.run())


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("step", [0.2, 0.3, 0.45])
def test_a_larger_reduction_serves_a_smaller_one(step: float, unit: str, tmp_path: Path) -> None:
    settings = (f"search.step={step}", f"search.unit={unit}")
    _, large = searched(tmp_path / "large", *settings, "search.reduction=0.45")
    small, made = searched(tmp_path / "small", *settings, "search.reduction=0.25")
    setup = small.setup
    chosen = ekg_settings(setup.job.search, setup.search_spec.tie_tolerance)
    shared = [not depends_on_budget(setup.graph, setup.budget, chosen, made[:count]) for count in range(len(made))]
    common = shared.index(False) if False in shared else len(shared)
    assert [one.to_record() for one in made[:common]] == [one.to_record() for one in large[:common]]
    assert common >= len(made) - 3, "most of the search is shared"
    assert not any(shared[common:]), "once a proposal reaches the budget, one always does"
    assert made[-1].subnetwork not in [one.subnetwork for one in large], "the end depends on the budget here"
