"""Runs of EPruner: from a job to a fine-tuned network, with teachers at several betas."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import JOB

from ekgsearch.errors import JobError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.tensors import load_tensors
from ekgsearch.workers.backend import InProcessBackend

SETTINGS = (
    "search={method: epruner, beta: 0.97}",
    "bank.betas=[0.9, 0.95]",
    "bank.teachers=2",
    "warmup.epochs=0",
    "pretrain.epochs=1",
    "finetune.epochs=1",
    "finetune.baselines=[plain, uniform, scratch]",
    "cluster.threads=1",
)


def ran(folder: Path, *settings: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    given = dict(setting.split("=", 1) for setting in (*SETTINGS, *settings))
    job = load_job(folder / "job.yaml", [f"{name}={value}" for name, value in given.items() if value])
    job.run_dir.mkdir(exist_ok=True)
    run_job(job, InProcessBackend())
    return job.run_dir


def test_a_run_distils_from_the_networks_at_other_betas_into_the_one_that_stays(tmp_path: Path) -> None:
    run = ran(tmp_path / "one")
    lines = read_journal(run / "journal.jsonl")
    made = [line for line in lines if line["kind"] == "iteration"]
    assert [line.get("beta") for line in made] == [None, 0.9, 0.95, 0.97]
    assert next(line for line in lines if line["kind"] == "bank")["teachers"] == [1, 2]
    summary = pd.read_parquet(run / "tables/summary.parquet").iloc[0]
    assert (summary["method"], summary["iterations"]) == ("epruner", 3)
    assert summary[["final_top1", "plain_top1", "uniform_top1"]].notna().all()
    last = pd.read_parquet(run / "tables/subnetworks.parquet").query("iteration == 3")
    gone = summary["full_channels"] - summary["kept_channels"]
    assert gone == last["size"].sum() - last["num_kept"].sum() > 0, "each channel that goes is one of one convolution"
    iterations = pd.read_parquet(run / "tables/iterations.parquet")
    assert iterations["loss"].isna().all(), "no image was looked at"
    assert iterations["kept_macs"].is_monotonic_decreasing
    hours = pd.read_parquet(run / "tables/device_hours.parquet").set_index("instance")
    assert hours.loc["search", "idle_seconds"] <= 0.1 * hours.loc["search", "wall_seconds"]
    assert "search-uniform" in hours.index


def test_fine_tuning_starts_from_the_weights_that_the_method_leaves(tmp_path: Path) -> None:
    run = ran(tmp_path, "bank.betas=", "finetune.objective=plain", "finetune.epochs=0", "search.initialisation=random")
    slim, final = (load_tensors(run / name)[0] for name in ("slim.safetensors", "final.safetensors"))
    assert slim.keys() == final.keys()
    assert all(torch.equal(slim[name], final[name]) for name in slim)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("search.reduction=0.3",), "exactly one of search.beta .*found beta and reduction"),
        (("search={method: epruner}",), "exactly one of search.beta .*found none"),
        (("search.beta=0",), "search.beta = 0: must be greater than 0"),
        (("search.beta=1.5",), "search.beta = 1.5: must be less than or equal to 1"),
        (("search.late_beta=0.9",), "search.late_beta and search.late_from go together"),
        (("search.late_first_conv=true",), "there is no search.late_beta"),
        (("bank.betas=[0.9]",), "bank.betas = .*at least 2"),
        (("bank.betas=[0.9, 0.9]",), "each value is one teacher; name it once"),
        (("bank.betas=[0.9, 0.97]",), "search.beta = 0.97 is the student, who is no teacher"),
        (("bank.betas=null",), "finetune.objective ekg has no teachers; give bank.betas"),
        (("search={reduction: 0.3}",), "bank.betas does nothing with search.method ekg"),
        (("search.groups=all",), "search.groups = 'all': must be 'private'"),
        (("search.step=0.1",), "search.step: unknown key .*belongs to search.method ekg, not to epruner"),
        (
            ("search.method=eprunner",),
            "search.method = 'eprunner': must be one of ekg, epruner, uniform, l1, l2, fpgm, ",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output="run"))
    given = dict(setting.split("=", 1) for setting in (*SETTINGS, *settings))
    with pytest.raises(JobError, match=words):
        load_job(tmp_path / "job.yaml", [f"{name}={value}" for name, value in given.items()])
