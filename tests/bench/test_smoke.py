"""Benchmarks in small: no file names a setting that takes long, and what a machine lacks is said in words."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from ekgsearch.bench.base import load_bench, run_bench
from ekgsearch.cli import cli
from ekgsearch.jobfile import load_job

JOBS = Path(__file__).parents[2] / "jobs"
FILES = sorted(JOBS.glob("bench_*.yaml"))

MOST = {
    "image_size": 64,
    "images": 64,
    "classes": 10,
    "teachers": 2,
    "batch_size": 16,
    "batches": 2,
    "steps": 2,
    "pairs": 1,
    "workers": 1,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EKGSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_benchmark_is_small_and_writes_to_a_file_of_its_own(path: Path) -> None:
    settings = load_bench(path)[1]
    smoke = settings.smoke()
    values = smoke.checked.model_dump()
    assert {name: values[name] for name, most in MOST.items() if name in values and values[name] > most} == {}
    assert Path(smoke.checked.output) == Path(settings.output).with_name("bench.smoke.parquet")
    if "job" in values:
        job = load_job(Path(values["job"]), values["overrides"])
        assert (job.data.name, job.search.max_candidates, job.net.weights) == ("generated", 3, None)
        assert job.search.reduction == 1e-6
        assert any("take their place" in note for note in smoke.notes)
    if "folder" in values:
        assert values["folder"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("search_gpu", []),
        ("search", ["baseline=naive tf32"]),
        ("distillation", ["device=cuda", "processes=1"]),
        ("loader", ["device=cuda"]),
    ],
)
def test_a_benchmark_of_a_gpu_is_skipped_where_there_is_none(name: str, settings: list[str], tmp_path: Path) -> None:
    arguments = [word for setting in (*settings, f"output={tmp_path}/rows.parquet") for word in ("--set", setting)]
    done = CliRunner().invoke(cli, ["bench", str(JOBS / f"bench_{name}.yaml"), "--smoke", *arguments])
    assert done.exit_code == 0, done.output
    assert "skipped, since it needs a GPU, and torch finds no CUDA device on this machine" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_small_benchmark_runs_on_generated_files_and_begins_a_new_file(tmp_path: Path) -> None:
    settings = [f"output={tmp_path}/rows.parquet", "folder=$EKGSEARCH_DATA/pictures", "image_size=16"]
    for _ in range(2):
        _, measurements, output = run_bench(JOBS / "bench_loader.yaml", settings, smoke=True)
    assert output == tmp_path / "rows.smoke.parquet"
    assert len(pd.read_parquet(output)) == len(measurements) > 0
    assert not (tmp_path / "rows.parquet").exists()
