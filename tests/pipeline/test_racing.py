"""Racing searches of a small network: what they save, and that nobody can tell how many workers there were."""

import json
from pathlib import Path

import pytest
from small_search import SeveralWorkers, SmallSearch

from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.team import Team

ERROR = 0.5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallSearch:
    return SmallSearch.make(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def raced(small: SmallSearch, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with InProcessBackend().team(small.workload, small.setup.search_spec) as team:
        return small.race(team, tmp_path_factory.mktemp("raced") / "journal.jsonl", ERROR)


def test_dropped_candidates_are_recorded_with_the_images_they_have_seen_and_never_win(
    small: SmallSearch, raced: bytes
) -> None:
    num_images = len(small.setup.search_ids)
    records = [json.loads(line) for line in raced.splitlines()]
    seen = [line["images"] for record in records for line in record["candidates"]]
    assert {images < num_images for images in seen} == {True, False}
    for record in records[1:]:
        assert record["images"] == num_images
        complete = {line["group"]: line["score"] for line in record["candidates"] if line["images"] == num_images}
        assert record["group"] == min(complete, key=lambda group: complete[group])


@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_races_are_decided_alike_for_any_number_of_workers(
    number: int, small: SmallSearch, raced: bytes, tmp_path: Path
) -> None:
    crew = SeveralWorkers(small, number)
    assert small.race(Team(crew, small.setup.search_spec), tmp_path / "journal.jsonl", ERROR) == raced
    assert max(crew.num_asked) < 6 * raced.count(b"\n")
    if number == 7:
        assert min(crew.num_asked) < max(crew.num_asked), "owners of late batches alone are asked late"


def test_a_race_continues_from_the_journal(small: SmallSearch, raced: bytes, tmp_path: Path) -> None:
    lines = raced.splitlines(keepends=True)
    for done in (1, len(lines) // 2):
        (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:done]))
        with InProcessBackend().team(small.workload, small.setup.search_spec) as team:
            assert small.race(team, tmp_path / "journal.jsonl", ERROR) == raced


def test_a_race_that_drops_nobody_is_the_exact_search(small: SmallSearch, tmp_path: Path) -> None:
    with InProcessBackend().team(small.workload, small.setup.search_spec) as team:
        careful = small.race(team, tmp_path / "careful.jsonl", error=1e-12)
    assert careful == small.undisturbed(tmp_path / "exact.jsonl")
