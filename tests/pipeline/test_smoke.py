"""The smoke form of jobs: the bounds of every field, what takes the place of what is missing, and one whole run."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import command, environment
from data.loading import picture_folder
from safetensors.torch import save_file

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.errors import DataError, JobError, StorageError
from ekgsearch.experiment import Job, flat
from ekgsearch.jobfile import load_fields, load_job, load_model
from ekgsearch.pipeline.images import data_request
from ekgsearch.pipeline.smoke import Smoke, emptied, smoke_of
from ekgsearch.pipeline.study import StudyJob
from ekgsearch.storage.journal import read_journal
from ekgsearch.sweep.job import load_sweep

ROOT = Path(__file__).parents[2]
KINDS = {path: load_fields(path).values for path in sorted((ROOT / "jobs").glob("*.yaml"))}
JOBS = [path for path, values in KINDS.items() if "bench" not in values]

LARGE = """\
output: {there}/real
search_run: {there}/other
net: {{name: resnet20, weights: {there}/absent.safetensors}}
data: {{name: digits, image_size: 128, max_images_per_class: 100}}
pretrain: {{epochs: 300, batch_size: 512, warmup_epochs: 5}}
warmup: {{epochs: 3, images_per_class: 40}}
search: {{reduction: 0.5, images_per_class: 30, racing: 0.05}}
bank: {{teachers: 5, uri: "s3://bucket/bank", cache: {there}/cache}}
finetune: {{objective: byol, epochs: 50, warmup_epochs: 5, accumulate: 8, average_last: 9,
  recalibrate_images: 700, checkpoint_every_steps: 90, workers: 4,
  baselines: [plain, uniform, l1, {{method: l1, stages: 3}}]}}
phases: {{uri: "s3://bucket/phases"}}
cluster: {{search_workers: 8, address: "10.0.0.1:6379", device: cuda}}
"""

MOST = {
    "data.image_size": 64,
    "data.max_classes": 10,
    "data.max_images_per_class": 4,
    "data.train_images": 40,
    "data.test_images": 20,
    "pretrain.epochs": 1,
    "pretrain.warmup_epochs": 1,
    "pretrain.batch_size": 20,
    "warmup.epochs": 1,
    "warmup.images_per_class": 2,
    "warmup.batch_size": 10,
    "search.images_per_class": 2,
    "search.batch_size": 4,
    "bank.teachers": 1,
    "bank.batch_size": 20,
    "finetune.epochs": 1,
    "finetune.warmup_epochs": 1,
    "finetune.batch_size": 20,
    "finetune.accumulate": 2,
    "finetune.average_last": 1,
    "finetune.recalibrate_images": 20,
    "finetune.checkpoint_every_steps": 1,
    "finetune.workers": 1,
    "cluster.search_workers": 0,
    "study.subnetworks": 3,
    "study.by_l1": 1,
    "study.points": 2,
    "study.lanczos_iterations": 2,
}

ABSENT = ("search_run", "bank.uri", "bank.cache", "phases.uri", "cluster.address", "search.budget")


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither data nor a download of an earlier run."""
    for name in ("EKGSEARCH_DATA", "IMAGENET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Smoke[Job]]:
    """The smoke form of a job text."""

    def of(text: str = LARGE, *settings: str) -> Smoke[Job]:
        path = tmp_path / "job.yaml"
        path.write_text(text.format(there=tmp_path))
        return smoke_of(load_job(path, settings))

    return of


def check_bounds(job: Job) -> None:
    """See that every field is in its bounds, and that a training makes two steps."""
    fields = flat(job.model_dump())
    over = {name: fields[name] for name, most in MOST.items() if name in fields and fields[name] > most}
    assert over == {}
    assert {name: fields[name] for name in ABSENT if fields[name] is not None} == {}
    for name in ("pretrain", "finetune", "bank"):
        assert fields["data.train_images"] == 2 * fields[f"{name}.batch_size"]
    assert fields["cluster.device"] == "auto"
    if job.search.needs_workers and not isinstance(job, StudyJob):
        assert job.search.max_candidates == 3
        assert job.search.reduction is not None
        assert job.search.reduction < 1e-5


def test_every_large_field_is_small(small: Callable[..., Smoke[Job]], tmp_path: Path) -> None:
    job = small().checked
    check_bounds(job)
    assert job.run_dir == tmp_path / "real.smoke"
    assert (job.finetune.objective, job.search.racing) == ("byol", 0.05)
    assert [choice.name for choice in job.finetune.baselines] == ["plain", "uniform", "l1"]
    assert job.warmup.batch_size == 10
    assert small(LARGE, "warmup.images_per_class=1", "search.images_per_class=1").checked.search.images_per_class == 1


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_file_has_a_smoke_form_without_its_data(path: Path) -> None:
    if "tune" in KINDS[path]:
        real: Job = load_sweep(path).any_trial().job
    else:
        real = load_model(path, StudyJob if "study" in KINDS[path] else Job)
    smoke = smoke_of(real)
    check_bounds(smoke.checked)
    assert smoke.checked.run_dir.name == f"{real.run_name}.smoke"
    assert smoke.checked.run_dir.parent == real.run_dir.parent
    shape = data_request(smoke.checked).open().image_shape
    match real.data.name:
        case "digits":
            assert smoke.notes == ()
        case "cifar10":
            assert (smoke.checked.data.name, smoke.checked.data.classes, shape) == ("generated", 10, (3, 32, 32))
        case "image_folder":
            assert (smoke.checked.data.name, smoke.checked.data.classes, shape) == ("generated", 1000, (3, 64, 64))
            assert smoke.checked.finetune.crop == "resized"
    assert len(smoke.notes) == (real.data.name != "digits") + (real.net.weights is not None)


def test_what_is_missing_is_said_and_what_takes_its_place(small: Callable[..., Smoke[Job]], tmp_path: Path) -> None:
    text = LARGE.replace("name: digits", "name: cifar100, root: {there}/nowhere").replace("image_size: 128, ", "")
    smoke = small(text)
    assert smoke.checked.net.weights is None
    assert smoke.notes == (
        f"net.weights = {tmp_path}/absent.safetensors: there is no file {tmp_path}/absent.safetensors; the network "
        "starts with fresh weights",
        f"cifar100: expected a folder of data at {tmp_path}/nowhere, found none; set data.root in the job, or "
        "EKGSEARCH_DATA, to the folder that holds the data set; generated pictures (3x32x32, 100 classes) take their "
        "place",
    )


def test_variables_that_are_not_set_are_missing_files(small: Callable[..., Smoke[Job]]) -> None:
    text = LARGE.replace("name: digits", "name: image_folder, root: $IMAGENET")
    smoke = small(text.replace("{there}/absent", "$IMAGENET/absent"))
    assert [note.partition(";")[0] for note in smoke.notes] == [
        "net.weights = $IMAGENET/absent.safetensors: the environment variable IMAGENET is not set",
        "data.root = $IMAGENET: the environment variable IMAGENET is not set",
    ]


def test_data_and_weights_that_are_there_are_used(small: Callable[..., Smoke[Job]], tmp_path: Path) -> None:
    picture_folder(tmp_path / "pictures", train=6, test=6)
    save_file(build(zoo_factory("resnet20", 2, (3, 64, 64))).state_dict(), tmp_path / "absent.safetensors")
    text = LARGE.replace("name: digits", "name: image_folder, root: {there}/pictures")
    smoke = small(text)
    assert smoke.notes == ()
    assert (smoke.checked.data.name, smoke.checked.net.weights) == ("image_folder", f"{tmp_path}/absent.safetensors")
    assert smoke.checked.data.train_images == 8
    check_bounds(smoke.checked)
    (tmp_path / "pictures" / "train" / "cat" / "05.jpg").write_bytes(b"no picture")
    assert small(text) == smoke  # it is none of those that are opened
    (tmp_path / "pictures" / "train" / "cat" / "00.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no usable picture"):
        small(text)


def test_a_budget_of_operations_becomes_a_share(small: Callable[..., Smoke[Job]]) -> None:
    uniform = """\
output: out
warmup: {{images_per_class: 16}}
search: {{method: uniform, budget: 1000000}}
finetune: {{objective: plain}}
"""
    job = small(uniform).checked
    assert (job.search.reduction, job.search.budget) == (0.3, None)


def test_only_an_earlier_smoke_run_is_removed(small: Callable[..., Smoke[Job]], tmp_path: Path) -> None:
    job, folder = small().checked, tmp_path / "real.smoke"
    with emptied(job):
        (folder / "thesis.txt").touch()
    with (
        pytest.raises(StorageError, match=r"expected what an earlier smoke run has left, found no log\.txt"),
        emptied(job),
    ):
        pass
    (folder / "log.txt").touch()
    (folder / "tables").mkdir()
    with emptied(job):
        assert list(folder.iterdir()) == []


def test_a_smoke_run_that_is_under_way_keeps_its_folder(small: Callable[..., Smoke[Job]], tmp_path: Path) -> None:
    job = small().checked
    with emptied(job):
        (tmp_path / "real.smoke" / "log.txt").touch()
        with pytest.raises(StorageError, match="a smoke run of this job is under way"), emptied(job):
            pass
        assert (tmp_path / "real.smoke" / "log.txt").exists()


def test_contradictions_of_the_small_job_are_told(small: Callable[..., Smoke[Job]]) -> None:
    text = """\
output: out
data: {{name: generated, classes: 1, max_images_per_class: 2}}
pretrain: {{batch_size: 2}}
warmup: {{images_per_class: 1}}
search: {{reduction: 0.5, images_per_class: 1}}
finetune: {{objective: byol, batch_size: 2}}
"""
    with pytest.raises(JobError, match=r"in small: finetune\.objective byol compares images"):
        small(text)


def test_a_smoke_run_goes_through_all_phases_in_one_process(tmp_path: Path) -> None:
    """It asks for workers of a cluster that is not there; the real run and a small one were made before."""
    real, small = tmp_path / "run", tmp_path / "run.smoke"
    for folder in (real, small):
        folder.mkdir()
        (folder / "journal.jsonl").write_text("an earlier run\n")
        (folder / "log.txt").touch()
    settings = [f"output={real}", "data.name=cifar10", "finetune.baselines=[plain]", "cluster.threads=1"]
    arguments = [
        "run",
        ROOT / "jobs" / "quickstart.yaml",
        *(word for setting in settings for word in ("--set", setting)),
    ]
    settled = environment() | {"RAY_ADDRESS": "127.0.0.1:1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    settled.pop("EKGSEARCH_DATA", None)
    done = subprocess.run(
        command(*arguments, "--smoke"), env=settled, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = read_journal(small / "journal.jsonl")
    assert lines[-1]["kind"] == "done"
    candidates = [len(line["candidates"]) for line in lines if line["kind"] == "iteration"]
    assert candidates in ([0, 1], [0, 2], [0, 3])
    assert {"finetune-slim", "finetune-plain"} <= {line.get("phase") for line in lines}
    assert "smoke: cifar10: neither" in done.stderr
    assert "generated pictures (3x32x32, 10 classes) take their place" in (small / "log.txt").read_text()
    assert (small / "report.html").is_file()
    assert json.loads((small / "subnetwork.json").read_text())
    assert sorted(os.listdir(real)) == ["journal.jsonl", "log.txt"]
    assert (real / "journal.jsonl").read_text() == "an earlier run\n"


@pytest.mark.parametrize("option", [["--resume"], ["--address", "auto"], ["--verify-phases"]])
def test_options_that_mean_nothing_in_small_are_refused(option: list[str]) -> None:
    done = subprocess.run(
        command("run", ROOT / "jobs" / "quickstart.yaml", "--smoke", *option),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"leave {option[0]} out" in done.stderr
