"""The benchmark of Ray runs on a small search, on which both sides decide the same, and counts few small messages."""

import dataclasses
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from command_line import JOB, command, environment
from small_search import SmallSearch

from ekgsearch.bench.ray import PipeCrew, Side
from ekgsearch.errors import EkgError, JobError
from ekgsearch.methods.ekg.method import ekg_settings
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.team import Team


@pytest.mark.ray
@pytest.mark.slow
def test_the_messages_of_a_small_search_are_counted(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    (tmp_path / "bench.yaml").write_text(f"{{bench: ray, job: {tmp_path / 'job.yaml'}, pairs: 3, output: {rows}}}")
    finished = subprocess.run(
        command("bench", tmp_path / "bench.yaml"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = pd.read_parquet(rows).set_index("quantity")
    assert 2 <= found.value["calls per worker and iteration, most"] <= 3
    assert 0 < found.value["largest object sent"] < 1000
    assert found.repeats["processor time, Ray / plain"] == 3


def test_a_side_searches_as_the_job_says_and_tells_when_no_iteration_is_left(tmp_path: Path) -> None:
    small = SmallSearch.make(tmp_path, ["search.batch_size=60", "search.reduction=0.1", "search.quirks=reference"])
    setup, spec = small.setup, small.setup.search_spec
    with InProcessBackend().team(small.workload, spec) as team:
        expected = list(
            EkgSearch(setup.graph, team, setup.budget, ekg_settings(setup.job.search, spec.tie_tolerance)).run()
        )
    with InProcessBackend().team(small.workload, spec) as team:
        side = Side(setup, team._crew, lambda: [])
        for _ in expected:
            side.step()
        with pytest.raises(JobError, match=f"pairs: the search ended after {len(expected) - 1} iterations"):
            side.step()
    assert side.decisions == expected


def test_a_plain_worker_that_cannot_open_its_network_is_one_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = SmallSearch.make(tmp_path)
    crew = PipeCrew(dataclasses.replace(small.workload, weights=tmp_path / "gone"), small.setup.search_spec, 1)
    with pytest.raises(EkgError, match="plain worker process 0 ended with exit code 1 before it answered"):
        Team(crew, small.setup.search_spec).begin([small.setup.graph.full()])
    crew.stop()
    said = capfd.readouterr().err
    assert str(tmp_path / "gone") in said
    assert "Traceback" not in said
