"""Cuts in stages: each scores the weights that were trained last, and the epochs add up."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from command_line import JOB
from stopping import Stopper

from ekgsearch.errors import BudgetError, Stopped
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.listener import EpochEnded
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.tensors import load_tensors
from ekgsearch.workers.backend import InProcessBackend

SETTINGS = ("warmup.epochs=0", "pretrain.epochs=2", "finetune.objective=plain", "cluster.threads=1")


def run(folder: Path, search: str, *settings: str, reduction: float = 0.6, **options: Any) -> Path:
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    fields = f"search={{{search}, reduction: {reduction}, images_per_class: 12}}"
    job = load_job(folder / "job.yaml", (*SETTINGS, fields, *settings))
    job.run_dir.mkdir(exist_ok=True)
    run_job(job, InProcessBackend(), **options)
    return job.run_dir


def table(run_dir: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run_dir / f"tables/{name}.parquet")


def test_each_stage_cuts_the_same_share_and_the_epochs_are_those_of_the_job(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "method: random",
        "finetune.epochs=4",
        "finetune.baselines=[{method: taylor, groups: private, stages: 3}]",
    )
    stages = table(done, "stages")
    assert set(stages["network"]) == {"taylor-private-3-stages"}
    assert list(stages["stage"]) == [1, 2, 3]
    assert stages["macs_reduction"].tolist() == pytest.approx([0.2, 0.4, 0.6], abs=0.01)
    assert stages["epochs"].tolist() == [1, 1, 2]
    assert stages["held"].all()
    assert (stages["top1"] > 10).all()
    [row] = table(done, "baselines").to_dict("records")
    assert (row["method"], row["groups"], row["stages"], row["epochs"]) == ("taylor", "private", 3, 4)
    assert row["top1"] == stages["top1"].iloc[-1]
    assert row["latency_ms"] > 0
    assert row["latency_ratio_batch64"] > 0
    epochs = table(done, "epochs").groupby("network")["epoch"].max()
    assert {name: epochs[name] for name in epochs.index if name.startswith("taylor")} == {
        "taylor-private-3-stages-stage-1": 1,
        "taylor-private-3-stages-stage-2": 1,
        "taylor-private-3-stages": 2,
    }
    hours = table(done, "device_hours")
    staged = hours[hours["instance"] == "search-taylor-private-3-stages"]
    assert set(staged["phase"]) == {"search", "finetune"}, "cuts and trainings are charged to what they are"


def test_a_search_in_stages_goes_on_after_a_stop_and_cuts_what_it_has_trained(tmp_path: Path) -> None:
    """The weights that the last training starts from are those of the stage before, without the channels that went."""
    settings = ("method: l2, stages: 3", "finetune.epochs=3")
    stopper = Stopper(lambda event: isinstance(event, EpochEnded) and event.network == "slim-stage-2")
    with pytest.raises(Stopped):
        run(tmp_path, *settings, listener=stopper)
    done = run(tmp_path, *settings)
    trained, cut = (load_tensors(done / name)[0] for name in ("training/slim-stage-2.safetensors", "slim.safetensors"))
    assert torch.equal(trained["linear.bias"], cut["linear.bias"]), "nothing was cut there"
    values = set(trained["layer3.2.bn1.bias"].tolist())
    assert set(cut["layer3.2.bn1.bias"].tolist()) < values
    stages = table(done, "stages")
    assert stages["network"].tolist() == ["slim"] * 3
    assert stages["top1"].iloc[-1] == table(done, "summary")["final_top1"].item()
    assert table(done, "summary")["macs_reduction"].item() == stages["macs_reduction"].iloc[-1]
    trainings = [row for row in table(done, "epochs").itertuples() if row.network.startswith("slim")]
    assert [(row.network, row.epoch) for row in trainings] == [("slim-stage-1", 1), ("slim-stage-2", 1), ("slim", 1)]
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", *settings)
    assert [line for line in read_journal(whole / "journal.jsonl") if line["kind"] not in ("run", "job")] == [
        line for line in read_journal(done / "journal.jsonl") if line["kind"] not in ("run", "job")
    ]


def test_cuts_end_before_a_stage_that_falls_too_far(tmp_path: Path) -> None:
    """What stays is the stage before, or the first one where already that falls, and no epoch is lost."""
    done = run(
        tmp_path,
        "method: l2",
        "finetune.epochs=5",
        "finetune.learning_rate=0.0001",
        "finetune.baselines=[{method: random, groups: all, stages: 4, stop_below: 6}]",
    )
    stages, full = table(done, "stages"), table(done, "summary")["full_top1"].item()
    *before, fallen, last = stages.to_dict("records")
    assert all(row["held"] and row["top1"] >= full - 6 for row in before)
    assert not fallen["held"]
    assert fallen["top1"] < full - 6
    assert last["macs_reduction"] == (before or [fallen])[-1]["macs_reduction"] < 0.5
    assert stages["epochs"].sum() == 5
    assert table(done, "baselines")["stages"].item() == max(1, len(before))


def test_stages_that_might_cut_nothing_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"each of 60 stages would cut .* but one channel of .* use at most"):
        run(tmp_path, "method: l1, stages: 60", "finetune.epochs=60")
    assert not (tmp_path / "run/training").exists()


@pytest.mark.parametrize("stages", ["", ", stages: 3"])
def test_a_baseline_that_cannot_be_cut_so_far_is_refused_before_any_work(tmp_path: Path, stages: str) -> None:
    search = "finetune.baselines=[{method: l1, groups: private" + stages + "}]"
    with pytest.raises(BudgetError, match=r"l1 over private channel groups: expected to keep at most .* cut all"):
        run(tmp_path, "method: l2", search, "finetune.epochs=3", reduction=0.97)
    assert not (tmp_path / "run/training").exists()


def test_a_baseline_cuts_all_and_private_channel_groups_and_keeps_the_better(tmp_path: Path) -> None:
    done = run(tmp_path, "method: random", "finetune.epochs=1", "finetune.baselines=[l2, uniform]")
    for name in ("l2", "uniform"):
        [line] = [
            one
            for one in read_journal(done / "journal.jsonl")
            if one.get("phase") == f"search-{name}" and one["kind"] == "search"
        ]
        assert line["losses"].keys() == {"all", "private"}
        assert line["groups"] == min(line["losses"], key=line["losses"].get)
        assert table(done, "baselines").query("network == @name")["groups"].item() == line["groups"]
