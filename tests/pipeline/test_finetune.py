"""From the sections of a job to its trainings, and from committed files back to networks."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import JOB
from paper_run import paper_run

from ekgsearch.data.views import Augmentation
from ekgsearch.errors import StorageError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.decisions import final_subnetwork, teachers_of
from ekgsearch.pipeline.finetune import finetune_config
from ekgsearch.pipeline.phases import phases_of
from ekgsearch.pipeline.search import Search
from ekgsearch.pipeline.train import training_config
from ekgsearch.pipeline.warmup import warmup_config
from ekgsearch.records import Subnetwork
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal

FOUND, NARROW = Subnetwork.of({"a": range(4)}), Subnetwork.of({"a": range(2)})


def job_with(folder: Path, *settings: str) -> Job:
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    return load_job(folder / "job.yaml", settings)


def state_of(job: Job, num_classes: int = 10) -> Any:
    dataset = SimpleNamespace(num_classes=num_classes)
    setup = SimpleNamespace(job=job, dataset=dataset, train_ids=None, budget=None)
    return SimpleNamespace(setup=setup, open_graph=lambda: None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["finetune.baselines=[plain, uniform]"],
            ["bank", "finetune-slim", "finetune-plain", "search-uniform", "finetune-uniform"],
        ),
        (["finetune.baselines=[plain]", "finetune.objective=plain"], ["finetune-slim"]),
        (
            [
                "finetune.baselines=[plain, uniform]",
                "finetune.objective=single",
                "search={method: uniform, reduction: 0.3}",
            ],
            ["finetune-slim", "finetune-plain"],
        ),
    ],
)
def test_a_baseline_that_is_the_network_itself_is_not_trained_twice(
    settings: list[str], expected: list[str], tmp_path: Path
) -> None:
    phases = phases_of(job_with(tmp_path, *settings))
    assert [phase.name for phase in phases] == ["pretrain", "warmup", "search", *expected, "evaluate"]


def test_seed_and_temperature_are_those_of_the_job_or_of_its_images(tmp_path: Path) -> None:
    def seed(*settings: str) -> int:
        return finetune_config(state_of(job_with(tmp_path, *settings)), "ekg").seed

    assert seed("seed=5") == sub_seed(5, "finetune")
    assert seed("seed=5", "finetune.seed=7") == sub_seed(7, "finetune")
    assert seed("seed=5", "finetune.seed=0") == sub_seed(0, "finetune")
    found = [finetune_config(state_of(job_with(tmp_path), classes), "ekg").temperature for classes in (10, 999, 1000)]
    assert found == [4, 4, 10]
    assert finetune_config(state_of(job_with(tmp_path, "finetune.temperature=3"), 1000), "ekg").temperature == 3


def test_milestones_are_whole_epochs_after_the_first_step(tmp_path: Path) -> None:
    section = job_with(tmp_path, "finetune.epochs=10", "finetune.milestones=[0.01, 0.3, 0.31, 0.8]").finetune
    config = training_config(section, objective="plain", augmentation=Augmentation(), seed=1, num_evaluations=4)
    assert config.milestones == (3, 8)
    assert config.evaluate_every == 2


def test_the_warm_up_takes_what_its_subset_has_and_the_quirk_doubles_its_gradient_alone(tmp_path: Path) -> None:
    settings = ["warmup.batch_size=256", "warmup.learning_rate=0.25", "warmup.weight_decay=0.5"]
    config = warmup_config(job_with(tmp_path, *settings), 100)
    assert (config.batch_size, config.learning_rate, config.weight_decay) == (100, 0.25, 0.5)
    assert warmup_config(job_with(tmp_path, *settings), 300).batch_size == 256
    doubled = warmup_config(job_with(tmp_path, *settings, "search.quirks=[halved_warmup_divisor]"), 100)
    assert (doubled.learning_rate, doubled.weight_decay) == (0.5, 0.25)


def test_the_student_is_no_teacher(tmp_path: Path) -> None:
    state = state_of(job_with(tmp_path, "bank.teachers=9"))
    made: Any = [SimpleNamespace(evaluation=SimpleNamespace(loss=loss)) for loss in (0.1, 0.3, 0.2)]
    assert teachers_of(state, made) == (0, 1)
    assert teachers_of(state, made[:1]) == (0,)


def test_a_committed_file_that_was_altered_is_not_used(tmp_path: Path) -> None:
    setup: Any = SimpleNamespace(job=job_with(tmp_path))
    path, found = tmp_path / "slim.safetensors", tmp_path / "subnetwork.json"
    path.write_bytes(b"weights")
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        context = paper_run(setup, tmp_path, journal)
        assert context.committed("search") is None
        context.commit(
            Search(needs_workers=True), {"files": {path.name: file_sha256(path)}, "subnetwork": FOUND.sha256}
        )
        assert context.file("search", path.name) == path
        path.write_bytes(b"weighty")
        with pytest.raises(StorageError, match="missing or altered"):
            context.file("search", path.name)
        path.unlink()
        with pytest.raises(StorageError, match="missing or altered"):
            context.file("search", path.name)
        found.write_text(json.dumps(FOUND.to_dict()))
        assert final_subnetwork(context) == FOUND
        found.write_text(json.dumps(NARROW.to_dict()))
        with pytest.raises(StorageError, match="is not the sub-network that the journal names"):
            final_subnetwork(context)
