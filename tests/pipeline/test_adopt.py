"""What is copied when the search of another run is adopted, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import JOB

from ekgsearch.errors import ResumeError, StorageError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.adopt import FoundSearch, adopt
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return load_job(tmp_path / "job.yaml")


@pytest.fixture
def found(tmp_path: Path) -> FoundSearch:
    """A search of one decision whose files are texts."""
    source = tmp_path / "source"
    (source / "training").mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for kind, name in (("pretrain", "initial"), ("warmup", "training/warmup"), ("search", "slim")):
        path = source / f"{name}.safetensors"
        path.write_text(kind)
        lines.append({"kind": kind, "file": f"{name}.safetensors", "sha256": file_sha256(path)})
    lines.insert(2, {"kind": "iteration", "iteration": 0})
    (source / "subnetwork.json").write_text("{}")
    return FoundSearch(source, tuple(lines))


def adopted(found: FoundSearch, job: Job) -> list[str]:
    with Journal.open(job.run_dir / "journal.jsonl") as journal:
        adopt(found, job, journal)
        return [line["kind"] for line in journal.lines]


def test_files_are_copied_and_an_adoption_is_completed(found: FoundSearch, job: Job) -> None:
    with Journal.open(job.run_dir / "journal.jsonl") as journal:
        for kind in ("run", "job"):  # statements of the run's own stand anywhere
            journal.append(kind)
        journal.append("pretrain", **{name: found.lines[0][name] for name in ("file", "sha256")})
        journal.append("job")
    expected = ["run", "job", "pretrain", "job", "warmup", "iteration", "search"]
    assert adopted(found, job) == adopted(found, job) == expected
    assert (job.run_dir / "training" / "warmup.safetensors").read_text() == "warmup"
    assert (job.run_dir / "slim.safetensors").read_text() == "search"
    assert (job.run_dir / "subnetwork.json").read_text() == "{}"


def _alter(path: Path) -> None:
    path.write_text("other")


@pytest.mark.parametrize("spoil", [_alter, Path.unlink])
def test_a_file_that_is_not_what_its_journal_names_is_not_adopted(
    spoil: Callable[[Path], object], found: FoundSearch, job: Job
) -> None:
    spoil(found.source / "training" / "warmup.safetensors")
    with pytest.raises(StorageError, match=r"warmup\.safetensors: the journal of that run names .* missing or altered"):
        adopted(found, job)
    assert not (job.run_dir / "training" / "warmup.safetensors").exists()


def test_decisions_of_another_search_are_not_continued(found: FoundSearch, job: Job) -> None:
    with Journal.open(job.run_dir / "journal.jsonl") as journal:
        journal.append("run")
        journal.append("pretrain", file="initial.safetensors", sha256="0")
    with pytest.raises(ResumeError, match="has decisions that are not those of search_run"):
        adopted(found, job)
