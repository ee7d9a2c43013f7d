"""Runs that share phases through a store: who computes what, who pays, and that the journals are equal."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import JOB

from ekgsearch.errors import StorageError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.sealed import sealed
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.team import Team
from ekgsearch.workers.training import TrainingSpec

SMALL = ("finetune.epochs=1", "pretrain.epochs=1", "search.batch_size=60", "search.images_per_class=6")


class Counting(InProcessBackend):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.trained: list[str] = []

    @contextmanager
    def team(self, *arguments: Any, **options: Any) -> Iterator[Team]:
        with super().team(*arguments, **options) as team:
            counted = self.asked
            evaluate, scores = team.evaluate, team.scores

            def counting(*given: Any) -> Any:
                counted["decisions"] += 1
                return scores(*given)

            team.scores = counting  # type: ignore[method-assign]
            team.evaluate = evaluate  # type: ignore[method-assign]
            counted["teams"] += 1
            yield team

    def train(self, spec: TrainingSpec, **options: Any) -> None:
        self.trained += [task.name for task in spec.tasks]
        super().train(spec, **options)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB.format(output="run"))
    return tmp_path / "job.yaml"


def ran(job_file: Path, name: str, *settings: str, verify: bool = False) -> tuple[Job, Counting]:
    given = (*SMALL, f"output={job_file.parent / name}", f"phases.uri={job_file.parent / 'store'}", *settings)
    fields = dict(setting.split("=", 1) for setting in given)
    job = load_job(job_file, [f"{name}={value}" for name, value in fields.items()])
    job.run_dir.mkdir(exist_ok=True)
    backend = Counting()
    run_job(job, backend, verify_phases=verify)
    return job, backend


def journal_of(job: Job) -> bytes:
    return (job.run_dir / "journal.jsonl").read_bytes()


def shared_with(job: Job) -> dict[str, str]:
    rows = Ledger(job.run_dir / "ledger", job.run_name).rows()
    return {row.instance: row.producer for row in rows if row.exit_state == "shared"}


def files_of(job: Job) -> dict[str, bytes]:
    return {name: (job.run_dir / name).read_bytes() for name in ("final.safetensors", "slim.safetensors")}


def test_an_equal_job_copies_everything_and_ends_in_the_same_bytes(job_file: Path) -> None:
    first, _ = ran(job_file, "first")
    second, counted = ran(job_file, "second", "bank.cache=/tmp/elsewhere")
    assert journal_of(first) == journal_of(second)
    assert files_of(first) == files_of(second)
    assert not counted.asked
    assert not counted.trained
    phases = ("pretrain", "warmup", "search", "bank", "finetune-slim", "evaluate")
    assert shared_with(second) == dict.fromkeys(phases, "first")
    hours = {row.instance: row.device_hours for row in Ledger(second.run_dir / "ledger", "second").rows()}
    assert hours.keys() == set(phases)
    alone = load_job(job_file, [*SMALL, f"output={job_file.parent / 'alone'}"])
    alone.run_dir.mkdir()
    run_job(alone, InProcessBackend())
    assert files_of(alone) == files_of(first)
    assert journal_of(alone) == journal_of(first)


def test_another_reduction_shares_what_comes_before_and_the_common_decisions_and_teachers(job_file: Path) -> None:
    _, all_of_it = ran(job_file, "large", "search.reduction=0.3")
    small, rest = ran(job_file, "small", "search.reduction=0.2")
    decisions = [line for line in read_journal(small.run_dir / "journal.jsonl") if line["kind"] == "iteration"]
    assert 0 < rest.asked["decisions"] <= 3 < all_of_it.asked["decisions"]
    assert len(decisions) - 1 > rest.asked["decisions"]
    assert shared_with(small) == {"pretrain": "large", "warmup": "large", "search": "large"}
    alone = load_job(job_file, [*SMALL, f"output={job_file.parent / 'alone'}", "search.reduction=0.2"])
    alone.run_dir.mkdir()
    run_job(alone, InProcessBackend())
    assert files_of(alone) == files_of(small)
    assert journal_of(alone) == journal_of(small)


def test_what_is_stored_is_computed_again_and_compared_where_that_is_asked_for(job_file: Path) -> None:
    plain = ("finetune.objective=plain", "search.reduction=0.1")
    first, _ = ran(job_file, "first", *plain)
    second, counted = ran(job_file, "second", *plain, verify=True)
    assert journal_of(first) == journal_of(second)
    assert counted.asked["decisions"] > 0
    assert counted.trained == ["slim"]
    record = next(path for path in (job_file.parent / "store" / "phases").glob("*/result.json") if _is(path, "warmup"))
    _alter(record)
    with pytest.raises(StorageError, match=r"is another one when it is computed again here: files\..* was "):
        ran(job_file, "third", *plain, verify=True)


def test_a_decision_that_is_another_one_is_never_taken_in_silence(job_file: Path) -> None:
    """Neither where decisions are verified, nor where a run has made its own before it shared them."""
    plain = ("finetune.objective=plain", "search.reduction=0.1")
    ran(job_file, "first", *plain)
    alone, _ = ran(job_file, "alone", *plain, "phases.uri=null")
    whole = journal_of(alone)
    (made,) = (job_file.parent / "store" / "phases").glob("*/decisions/000001.json")
    value = json.loads(made.read_bytes())["value"]
    value["record"]["loss"] += 1.0
    made.write_bytes(sealed(value))
    with pytest.raises(StorageError, match=r"decision 1 of the search is another one in .* made by 'first'"):
        ran(job_file, "verifying", *plain, verify=True)
    cut = job_file.parent / "cut"
    cut.mkdir()
    for name in ("provenance.json", "job.yaml", "initial.safetensors", "training"):
        source = alone.run_dir / name
        shutil.copytree(source, cut / name) if source.is_dir() else shutil.copy(source, cut / name)
    lines = whole.splitlines(keepends=True)
    second = [index for index, line in enumerate(lines) if json.loads(line)["kind"] == "iteration"][1]
    (cut / "journal.jsonl").write_bytes(b"".join(lines[: second + 1]))
    for record in (job_file.parent / "store" / "phases").glob("*/result.json"):
        if "subnetwork.json" in json.loads(record.read_bytes())["value"]["files"]:
            record.unlink()  # else its decisions are compared as a whole
    with pytest.raises(StorageError, match=r"decision 1 of the search is another one"):
        ran(job_file, "cut", *plain)
    ran(job_file, "cut", *plain, "phases.uri=null")
    assert journal_of(alone) == (cut / "journal.jsonl").read_bytes()


def _is(record: Path, phase: str) -> bool:
    return any(phase in name for name in json.loads(record.read_bytes())["value"]["fields"]["commit"]["files"])


def _alter(record: Path) -> None:
    """Claim other bytes for a phase than those that everybody computes."""
    value = json.loads(record.read_bytes())["value"]
    files: dict[str, str] = value["fields"]["commit"]["files"]
    value["fields"]["commit"]["files"] = dict.fromkeys(files, "0" * 64)
    record.write_bytes(sealed(value))


@pytest.mark.slow
def test_a_run_that_was_stopped_after_any_line_goes_on_with_the_store(job_file: Path, tmp_path: Path) -> None:
    plain = ("finetune.objective=plain", "search.reduction=0.1")
    first, _ = ran(job_file, "first", *plain)
    whole = journal_of(first)
    lines = whole.splitlines(keepends=True)
    for count in _places(lines):
        run = tmp_path / f"cut{count}"
        run.mkdir()
        for name in ("provenance.json", "job.yaml"):
            (run / name).write_bytes((first.run_dir / name).read_bytes())
        cut, _ = ran(job_file, f"cut{count}", *plain)
        (run / "journal.jsonl").write_bytes(b"".join(lines[:count]))
        cut, _ = ran(job_file, f"cut{count}", *plain)
        assert journal_of(cut) == whole


def _places(lines: Sequence[bytes]) -> list[int]:
    """After the statement, and after each kind of line."""
    kinds = [json.loads(line)["kind"] for line in lines]
    return [kinds.index(kind) + 1 for kind in ("begin", "pretrain", "warmup", "iteration", "search", "finetune")]
