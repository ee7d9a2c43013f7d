"""Searches in the faster tiers: approximate, and yet the same for any number of workers and after any stop."""

from pathlib import Path

import pytest
from small_search import SeveralWorkers, SmallSearch

from ekgsearch.pipeline.backend import InProcessBackend
from ekgsearch.pipeline.team import Team


@pytest.mark.parametrize(
    "tier",
    [
        ("search.precision=bf16", "search.channels_last=true"),
        pytest.param(("search.compile=true",), marks=pytest.mark.slow),
    ],
)
def test_a_faster_search_is_the_same_for_any_number_of_workers_and_after_a_stop(
    tier: tuple[str, ...], tmp_path: Path
) -> None:
    small = SmallSearch.make(tmp_path, ("search.batch_size=12", *tier))
    exact = SmallSearch.make(tmp_path, ("search.batch_size=12",))
    journal = small.undisturbed(tmp_path / "journal.jsonl")
    assert journal != exact.undisturbed(tmp_path / "exact.jsonl"), "the tier rounds otherwise, or it is none"
    crew = SeveralWorkers(small, 3)
    assert small.run(Team(crew, small.setup.search_plan), tmp_path / "several.jsonl") == journal
    lines = journal.splitlines(keepends=True)
    stopped = tmp_path / "stopped.jsonl"
    stopped.write_bytes(b"".join(lines[: len(lines) // 2]))
    with InProcessBackend().team(small.workload, small.setup.search_plan) as team:
        assert small.run(team, stopped) == journal
