"""The benchmark of the loaders runs, charges children, and measures what it says."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from data.loading import picture_folder

from ekgsearch.bench import loader
from ekgsearch.bench.base import load_bench, run_bench
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.loader import LoadedBatch
from ekgsearch.errors import DataError


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PICTURES", str(picture_folder(tmp_path / "pictures") / "train"))
    path = tmp_path / "bench.yaml"
    path.write_text(
        f"bench: loader\nfolder: $PICTURES\nimages: 8\nbatch_size: 4\nimage_size: 32\npairs: 2\n"
        f"output: {tmp_path}/rows.parquet\n"
    )
    return path


def test_every_case_is_measured_against_torchvision(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_TRAINED_BATCHES", 3)
    _, measurements, rows = run_bench(job, ["net=resnet18"])
    ratios = {m.case: m for m in measurements if m.unit == "x"}
    cases = {f"{name}, {by} against torchvision" for name, _, _ in loader._CASES for by in ("dali", "torch")}
    assert cases == set(ratios)
    rates = {m.case for m in measurements if (m.quantity, m.unit) == ("per core", "images/s")}
    sides = ("dali", "torchvision beside dali", "torch", "torchvision beside torch")
    assert rates == {f"{name}, {side}" for name, _, _ in loader._CASES for side in sides}
    assert all(m.value > 0 and m.repeats == 2 for m in measurements if m.unit != "%")
    [waits] = [m for m in measurements if m.unit == "%"]
    assert 0 <= waits.low <= waits.high <= 100
    assert rows.exists()


def test_training_waits_for_all_but_the_first_of_many_batches(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    class Waiting:
        def __init__(self, images: EncodedImages) -> None:
            self._images = images

        def epoch(self, number: int) -> Iterator[LoadedBatch]:
            assert len(self._images) == 50 * 4
            yield LoadedBatch(torch.arange(4), torch.zeros(4).long(), torch.zeros(4, 2, 3, 32, 32), 4, 0, 1e9)
            yield LoadedBatch(torch.arange(4), torch.zeros(4).long(), torch.zeros(4, 2, 3, 32, 32), 4, 0, 1e-9)

    monkeypatch.setattr(loader, "_loader", lambda settings, images, *_: Waiting(images))
    settings = load_bench(job)[1]
    assert isinstance(settings, loader.Settings)
    [_, waits] = loader._supply(settings, loader._open(settings, job.parent), "resnet18")
    assert 0 < waits.low <= waits.high < 1e-3
    assert not torch.backends.cudnn.allow_tf32, "the kernels are those of a training"


def test_the_time_of_children_counts() -> None:
    before = loader.cpu_seconds()
    subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
    assert loader.cpu_seconds() - before > 0.05


def test_too_few_pictures_are_said(job: Path) -> None:
    with pytest.raises(DataError, match="expected 50 pictures, found 12; lower `images`"):
        run_bench(job, ["images=50"])
