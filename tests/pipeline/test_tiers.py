"""Searches in the faster tiers: approximate, and yet the same for any number of workers and after any stop."""

import json
from pathlib import Path

import pytest
from small_search import SeveralWorkers, SmallSearch

from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.team import Team


@pytest.mark.slow
@pytest.mark.parametrize("tier", [("search.precision=bf16", "search.channels_last=true"), ("search.compile=true",)])
def test_a_faster_search_is_the_same_for_any_number_of_workers_and_after_a_stop(
    tier: tuple[str, ...], tmp_path: Path
) -> None:
    small = SmallSearch.make(tmp_path, ("search.batch_size=12", *tier))
    exact = SmallSearch.make(tmp_path, ("search.batch_size=12",))
    journal = small.undisturbed(tmp_path / "journal.jsonl")
    assert journal != exact.undisturbed(tmp_path / "exact.jsonl"), "the tier rounds otherwise, or it is none"
    crew = SeveralWorkers(small, 3)
    assert small.run(Team(crew, small.setup.search_spec), tmp_path / "several.jsonl") == journal
    lines = journal.splitlines(keepends=True)
    stopped = tmp_path / "stopped.jsonl"
    stopped.write_bytes(b"".join(lines[: len(lines) // 2]))
    with InProcessBackend().team(small.workload, small.setup.search_spec) as team:
        assert small.run(team, stopped) == journal


def decisions(journal: bytes) -> list[dict]:
    return [json.loads(line) for line in journal.splitlines()]


def without_scores(decision: dict) -> dict:
    """What was decided, from which candidates."""
    candidates = [[candidate[name] for name in ("group", "num_kept", "macs")] for candidate in decision["candidates"]]
    return {name: decision[name] for name in ("group", "kept", "rate", "macs", "subnetwork")} | {"of": candidates}


@pytest.mark.gpu
def test_a_gpu_decides_as_a_cpu(tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        small = SmallSearch.make(tmp_path, ("search.batch_size=12", f"cluster.device={device}"))
        assert small.workload.device == device
        found[device] = decisions(small.undisturbed(tmp_path / f"{device}.jsonl"))
    assert len(found["cpu"]) > 5
    for on_cpu, on_gpu in zip(found["cpu"], found["cuda"], strict=True):
        assert without_scores(on_gpu) == without_scores(on_cpu)
        scores = [[candidate["score"] for candidate in one["candidates"]] for one in (on_gpu, on_cpu)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)
