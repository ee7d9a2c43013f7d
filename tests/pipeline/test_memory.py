"""What a run says about memory before its search."""

import logging
from pathlib import Path

import pytest
from command_line import JOB

from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.memory import state_memory
from ekgsearch.pipeline.setup import set_up


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), "holds at most"),
        (("search.evaluation=naive",), "holds more than"),
        (("search.quirks=[sequential_statistics]",), "holds more than"),
    ],
)
def test_what_the_account_does_not_cover_is_said_to_hold_more(
    settings: tuple[str, ...], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ekgsearch")
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    state_memory(set_up(load_job(tmp_path / "job.yaml", settings)))
    assert expected in caplog.text
    assert "free here: " in caplog.text


def test_nothing_is_said_of_the_memory_that_is_free_on_the_nodes_of_a_cluster(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ekgsearch")
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    settings = ["cluster.address=10.0.0.1:6379", "cluster.search_workers=2"]
    state_memory(set_up(load_job(tmp_path / "job.yaml", settings)))
    assert "holds at most" in caplog.text
    assert "free here" not in caplog.text
