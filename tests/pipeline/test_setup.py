"""What a job needs is looked for before any work."""

import json
import sys
from pathlib import Path

import pytest
from command_line import JOB

from ekgsearch.errors import JobError
from ekgsearch.jobfile import load_job
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.weights import sidecar_path
from ekgsearch.nets.zoo import build
from ekgsearch.pipeline.setup import set_up
from ekgsearch.search.steps import QUIRKS
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.tensors import save_tensors


@pytest.mark.parametrize("objective", ["contrastive", "byol"])
def test_a_missing_lightly_is_said_with_the_command(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    monkeypatch.setitem(sys.modules, "lightly", None)  # as if it were not installed
    set_up(load_job(tmp_path / "job.yaml"))
    with pytest.raises(JobError, match=r"need lightly >= 1.6, found none; install it \(pip install 'lightly>=1.6'\)"):
        set_up(load_job(tmp_path / "job.yaml", [f"finetune.objective={objective}"]))


def test_all_quirks_pad_as_the_published_program_unless_the_job_or_a_sidecar_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))

    def padding(*settings: str) -> str:
        return set_up(load_job(tmp_path / "job.yaml", settings)).net.padding

    one_by_one = f"search.quirks=[{', '.join(QUIRKS)}]"
    assert padding() == "torch"
    assert padding("search.quirks=reference") == padding(one_by_one) == "tf_same"
    assert padding(f"search.quirks=[{QUIRKS[0]}]") == padding(one_by_one, "net.padding=torch") == "torch"
    weights = tmp_path / "weights.safetensors"
    net = NetSpec("resnet20", 10, (3, 8, 8))
    save_tensors(weights, build(net, seed=0).state_dict(), {})
    given = f"net.weights={weights}"
    assert padding(given, "search.quirks=reference") == "tf_same"
    sidecar = {"net": net.to_dict(), "mean": [0.0] * 3, "std": [1.0] * 3, "sha256": file_sha256(weights)}
    sidecar_path(weights).write_text(json.dumps(sidecar))
    assert padding(given, "search.quirks=reference") == "torch"
