"""How many images a job trains and evaluates on, and what is told of a data set without its pictures."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from command_line import JOB
from data.loading import picture_folder

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.cli import cli
from ekgsearch.data import decode, index
from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.finetune.config import TrainData
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline import evaluate
from ekgsearch.pipeline.run import run_job
from ekgsearch.pipeline.setup import set_up
from ekgsearch.storage.journal import read_journal
from ekgsearch.workers import training
from ekgsearch.workers.backend import InProcessBackend

Load = Callable[..., Job]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    (tmp_path / "run").mkdir()
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    return lambda *settings: load_job(tmp_path / "job.yaml", settings)


def test_a_run_trains_and_evaluates_on_the_images_that_its_job_names(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load(
        "data.train_images=130",
        "data.test_images=45",
        "pretrain.epochs=1",
        "finetune.epochs=1",
        "search.reduction=0.05",
    )
    banks, recalibrated = [], []

    def opened(store: object, spec: object, **options: object) -> MemoryBank:
        banks.append(spec)
        return open_bank(store, spec, **options)

    def recalibrate_on(network: torch.nn.Module, data: TrainData, **options: object) -> None:
        recalibrated.append(data.ids)

    open_bank = MemoryBank.open
    monkeypatch.setattr(training.MemoryBank, "open", opened)
    monkeypatch.setattr(evaluate, "recalibrate_on", recalibrate_on)
    run_job(job, InProcessBackend())
    setup = set_up(job)
    labels = setup.dataset.train.labels[setup.train_ids]
    assert torch.bincount(labels).tolist() == [13] * 10
    assert banks[0].image_ids.tolist() == setup.train_ids.tolist()
    assert recalibrated[0].tolist() == setup.train_ids.tolist()
    assert sorted(torch.bincount(setup.test.labels).tolist()) == [4] * 5 + [5] * 5
    line = next(line for line in read_journal(job.run_dir / "journal.jsonl") if line["kind"] == "evaluate")
    assert line["images"] == 45
    summary, epochs = (pd.read_parquet(job.run_dir / "tables" / f"{name}.parquet") for name in ("summary", "epochs"))
    assert summary.test_images.tolist() == [45]
    assert {(row.network, row.test_images) for row in epochs.itertuples()} == {
        ("full", 45),
        ("warmup", 0),
        ("slim", 45),
    }
    for top1 in (*summary.full_top1, *summary.final_top1, *epochs.test_top1.dropna()):
        assert top1 * 45 / 100 == pytest.approx(round(top1 * 45 / 100))


@pytest.mark.parametrize("field", ["train_images", "test_images"])
def test_more_images_than_there_are_is_said_before_any_work(field: str, load: Load) -> None:
    with pytest.raises(JobError, match=rf"data\.{field} = 99999, but .* has \d+ .*images"):
        set_up(load(f"data.{field}=99999"))


def parquet_folder(folder: Path) -> Path:
    folder.mkdir()
    labels = [0, 1, 2, 1]
    for name in ("train-0-of-1", "val-0-of-1"):
        pq.write_table(pa.table({"image": [b"no picture"] * 4, "label": labels}), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(("name", "classes"), [("image_folder", 2), ("parquet", 3)])
def test_groups_and_validate_decode_no_picture(
    name: str, classes: int, tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = picture_folder(tmp_path / "p") if name == "image_folder" else parquet_folder(tmp_path / "p")

    def refuse(*_: object) -> None:
        raise AssertionError("a picture was decoded")

    for module, function in ((decode, "open_picture"), (index, "check_picture"), (index, "examine")):
        monkeypatch.setattr(module, function, refuse)
    load()
    arguments = [str(tmp_path / "job.yaml"), "--set", f"data.name={name}", "--set", f"data.root={root}"]
    for command in ("groups", "validate"):
        finished = CliRunner().invoke(cli, [command, *arguments], catch_exceptions=False)
        assert finished.exit_code == 0
    table = CliRunner().invoke(cli, ["groups", *arguments]).output
    params = next(line for line in table.splitlines() if line.startswith("params"))
    assert params.split()[1] == f"{271_824 + 65 * classes:,}", "the classifier has as many classes"
