"""What a job needs is looked for before any work."""

import sys
from pathlib import Path

import pytest
from command_line import JOB

from ekgsearch.errors import JobError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.setup import set_up


@pytest.mark.parametrize("objective", ["contrastive", "byol"])
def test_a_missing_lightly_is_said_with_the_command(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    monkeypatch.setitem(sys.modules, "lightly", None)  # as if it were not installed
    set_up(load_job(tmp_path / "job.yaml"))
    with pytest.raises(JobError, match=r"need lightly >= 1.6, found none; install it \(pip install 'lightly>=1.6'\)"):
        set_up(load_job(tmp_path / "job.yaml", [f"finetune.objective={objective}"]))
