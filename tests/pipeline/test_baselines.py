"""Runs whose method is a one-shot baseline: from a job to a fine-tuned network."""

from pathlib import Path

import pandas as pd
import pytest
from command_line import JOB

from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.storage.journal import read_journal
from ekgsearch.workers.backend import InProcessBackend

SETTINGS = ("warmup.epochs=0", "pretrain.epochs=1", "finetune.epochs=1", "finetune.objective=plain")


@pytest.mark.parametrize("method", ["l2", "taylor"])
def test_a_run_cuts_at_once_and_fine_tunes_what_is_left(method: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output="run"))
    search = f"search={{method: {method}, reduction: 0.3, groups: private, images_per_class: 12}}"
    job = load_job(tmp_path / "job.yaml", (*SETTINGS, search, "cluster.threads=1"))
    job.run_dir.mkdir()
    run_job(job, InProcessBackend())
    made = [line for line in read_journal(job.run_dir / "journal.jsonl") if line["kind"] == "iteration"]
    assert len(made) == 2
    assert 10 <= made[1]["times_scored"] <= 12, "scored again after every 2.5 %"
    assert all(".conv1" in name for name in made[1]["kept"]), "private channel groups alone"
    summary = pd.read_parquet(job.run_dir / "tables/summary.parquet").iloc[0]
    assert (summary["method"], summary["iterations"]) == (method, 1)
    assert 0.3 <= summary["macs_reduction"] < 0.31
    assert summary["final_top1"] > 0
