"""What a job needs is looked for before any work."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import JOB
from paper_run import commit_until, paper_run

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.sidecar import sidecar_path
from ekgsearch.errors import JobError, ResumeError
from ekgsearch.jobfile import load_job
from ekgsearch.methods.ekg.quirks import QUIRKS
from ekgsearch.pipeline import network
from ekgsearch.pipeline.adopt import adopt_where_asked
from ekgsearch.pipeline.bank import bank_spec
from ekgsearch.pipeline.inspect import group_table
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import save_tensors

NET = {"name": "resnet20", "num_classes": 10, "input_shape": [3, 8, 8]}


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
        return set_up(load_job(tmp_path / "job.yaml", settings)).recipe.identity()["arguments"]["padding"]

    one_by_one = f"search.quirks=[{', '.join(QUIRKS)}]"
    assert padding() == "torch"
    assert padding("search.quirks=reference") == padding(one_by_one) == "tf_same"
    assert padding(f"search.quirks=[{QUIRKS[0]}]") == padding(one_by_one, "net.padding=torch") == "torch"
    weights = tmp_path / "weights.safetensors"
    net = zoo_factory("resnet20", 10, (3, 8, 8))
    save_tensors(weights, build(net, seed=0).state_dict(), {})
    given = f"net.weights={weights}"
    assert padding(given, "search.quirks=reference") == "tf_same"
    sidecar = {"net": NET, "mean": [0.0] * 3, "std": [1.0] * 3, "sha256": file_sha256(weights)}
    sidecar_path(weights).write_text(json.dumps(sidecar))
    assert padding(given, "search.quirks=reference") == "torch"


def test_without_a_warm_up_no_images_are_kept_for_it(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    more_than_there_are = "warmup.images_per_class=99999"
    assert len(set_up(load_job(tmp_path / "job.yaml", ["warmup.epochs=0", more_than_there_are])).warmup_ids) == 0
    with pytest.raises(JobError, match=r"warmup\.images_per_class = 99999, but a class of digits has only 139"):
        load_job(tmp_path / "job.yaml", [more_than_there_are])


def test_another_normalisation_or_padding_makes_another_run_search_and_memory_bank(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    weights, net = tmp_path / "weights.safetensors", zoo_factory("resnet20", 10, (3, 8, 8))
    save_tensors(weights, build(net, seed=0).state_dict(), {})

    def opened(*settings: str, **changes: object) -> Setup:
        fields = {"net": NET, "mean": [7.5] * 3, "std": [1.0] * 3, "sha256": file_sha256(weights)}
        sidecar_path(weights).write_text(json.dumps(fields | changes))
        return set_up(load_job(tmp_path / "job.yaml", [f"net.weights={weights}", *settings]))

    def bank_hash(setup: Setup) -> str:
        return bank_spec(SimpleNamespace(setup=setup), teachers=("a",), weights_hash="w").sha256  # type: ignore[arg-type]

    first = opened()
    others = {
        "network.mean": opened(mean=[7.5, 7.5, 8.0]),
        "network.std": opened(std=[2.0] * 3),
        "network.arguments.padding": opened(net=NET | {"padding": "tf_same"}),
    }
    run = first.job.run_dir
    run.mkdir()
    with Journal.open(run / "journal.jsonl") as journal:
        context = paper_run(first, run, journal)
        start_or_check(context, False)
        commit_until(context, "search")
        start_or_check(paper_run(opened(), run, journal), False)
        for name, other in others.items():
            with pytest.raises(ResumeError, match=rf"belongs to another run: {name} was .*, is .*again: pretrain, war"):
                start_or_check(paper_run(other, run, journal), True)
    assert bank_hash(opened()) == bank_hash(first)
    assert len({bank_hash(setup) for setup in (first, *others.values())}) == 4
    adopting = opened(f"output={tmp_path / 'other'}", f"search_run={run}", std=[2.0] * 3)
    adopting.job.run_dir.mkdir()
    with (
        Journal.open(adopting.job.run_dir / "journal.jsonl") as journal,
        pytest.raises(JobError, match=r"is not the one that this job describes: network\.std was .* Make them equal"),
    ):
        adopt_where_asked(paper_run(adopting, adopting.job.run_dir, journal))


def test_what_the_analysis_warns_of_is_said_next_to_the_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    found = network.analyse
    monkeypatch.setattr(network, "analyse", lambda *given: replace(found(*given), warnings=("costs are left out",)))
    job = load_job(tmp_path / "job.yaml")
    assert group_table(job).splitlines()[-1] == "warning: costs are left out"
    assert "resnet20: costs are left out" in caplog.text
