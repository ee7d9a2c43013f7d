"""Adoption of another run's search: what is copied, and what is refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import JOB
from paper_run import commit_until, paper_run

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.adopt import adopt_where_asked
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.setup import set_up
from ekgsearch.pipeline.statement import to_do_again
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal, read_journal

Adopting = Callable[..., RunContext]


@contextmanager
def opened(file: Path, *settings: str) -> Iterator[RunContext]:
    setup = set_up(load_job(file, settings))
    setup.job.run_dir.mkdir(exist_ok=True)
    with Journal.open(setup.job.run_dir / "journal.jsonl") as journal:
        yield paper_run(setup, setup.job.run_dir, journal)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    return tmp_path / "job.yaml"


@pytest.fixture
def source(file: Path, tmp_path: Path) -> Path:
    """A run whose search has finished, and whose files are texts."""
    with opened(file, f"output={tmp_path / 'source'}") as context:
        commit_until(context, "search")
        lines = list(context.journal.lines)
    run = tmp_path / "source"
    (run / "journal.jsonl").unlink()
    with Journal.open(run / "journal.jsonl") as journal:
        for line in lines:
            content = {name: value for name, value in line.items() if name not in ("seq", "kind", "prev", "hash")}
            for name in content.get("files", {}):
                (run / name).write_text(name)
                content["files"][name] = file_sha256(run / name)
            journal.append(line["kind"], **_with_weights(content, run))
    return run


def _with_weights(content: dict, run: Path) -> dict:
    """The inputs of a phase name the files that are there."""
    before = {"warmup": "pretrain", "search": "warmup"}.get(content.get("phase", ""))
    if before is None or "inputs" not in content:
        return content
    inputs = {**content["inputs"], "files": {"weights": file_sha256(run / f"{before}.safetensors")}}
    return {**content, "inputs": inputs}


def test_files_are_copied_and_the_adoption_is_recorded(source: Path, file: Path) -> None:
    with opened(file, f"search_run={source}") as context:
        adopt_where_asked(context)
        adopt_where_asked(context)
        assert context.journal.lines[0]["kind"] == "adopted"
        assert context.journal.lines[0]["run"] == "source"
        there = [line["kind"] for line in read_journal(source / "journal.jsonl")]
        assert [line["kind"] for line in context.journal.lines[1:]] == there
        assert (context.folder / "warmup.safetensors").read_text() == "warmup.safetensors"
        rows = context.ledger.rows()
    assert [(row.instance, row.producer, row.device_hours, row.exit_state) for row in rows] == [
        (name, "source", 0, "shared") for name in ("pretrain", "warmup", "search")
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 4, 7])
def test_an_adoption_that_was_killed_is_completed(count: int, source: Path, file: Path, tmp_path: Path) -> None:
    with opened(file, f"search_run={source}") as context:
        adopt_where_asked(context)
        whole = (context.folder / "journal.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(b"".join(lines[:count]))
    with opened(file, f"search_run={source}") as context:
        adopt_where_asked(context)
        assert len(context.ledger.rows()) == 3
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == whole


def _alter(path: Path) -> None:
    path.write_text("other")


@pytest.mark.parametrize("spoil", [_alter, Path.unlink])
def test_a_file_that_is_not_what_its_journal_names_is_not_adopted(
    spoil: Callable[[Path], object], source: Path, file: Path
) -> None:
    spoil(source / "warmup.safetensors")
    with opened(file, f"search_run={source}") as context:
        with pytest.raises(StorageError, match=r"warmup\.safetensors: the journal of that run .* missing or altered"):
            adopt_where_asked(context)
        assert not (context.folder / "warmup.safetensors").exists()


def test_a_journal_whose_files_lead_out_of_its_run_is_not_adopted(source: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"canary")
    path = source / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    with Journal.open(path) as journal:
        for line in lines:
            content = {name: value for name, value in line.items() if name not in ("seq", "kind", "prev", "hash")}
            if line["kind"] == "pretrain":
                sha256 = content["files"].pop("pretrain.safetensors")
                content |= {"files": {"../x": sha256}, "weights": "../x"}
            journal.append(line["kind"], **content)
    with opened(file, f"search_run={source}") as context, pytest.raises(StorageError, match="a relative name below"):
        adopt_where_asked(context)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["job.yaml", "run", "source", "x"]


def test_decisions_of_another_search_are_not_continued(source: Path, file: Path) -> None:
    with opened(file, f"search_run={source}") as context:
        context.journal.append("run")
        context.journal.append("begin", phase="pretrain", key="0", inputs={})
        with pytest.raises(ResumeError, match="has decisions that are not those of search_run"):
            adopt_where_asked(context)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["search.step=0.2"], "search.step was 0.4, is 0.2"),
        (["search.reduction=0.2"], "budget was .*, is "),
        (["seed=2"], "seed was 1, is 2"),
        (["search_run=/nowhere"], "found no /nowhere/journal.jsonl"),
    ],
)
def test_another_search_is_not_adopted(settings: list[str], message: str, source: Path, file: Path) -> None:
    given = {"search_run": str(source)} | dict(setting.split("=") for setting in settings)
    with opened(file, *(f"{name}={value}" for name, value in given.items())) as context:
        with pytest.raises(JobError, match=message):
            adopt_where_asked(context)
        assert context.journal.lines == []


@pytest.mark.parametrize("setting", ["cluster.threads=7", "cluster.threads_per_worker=7", "finetune.epochs=9"])
def test_a_search_is_adopted_whatever_computed_it_and_whatever_follows(setting: str, source: Path, file: Path) -> None:
    with opened(file, f"search_run={source}", setting) as context:
        adopt_where_asked(context)
        assert context.committed("search")
        assert to_do_again(context) == ([], []), "and it goes on when it is continued"


def test_a_search_without_an_end_is_not_adopted(source: Path, file: Path) -> None:
    lines = (source / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (source / "journal.jsonl").write_bytes(b"".join(lines[:-1]))
    with opened(file, f"search_run={source}") as context, pytest.raises(JobError, match="has not finished its search"):
        adopt_where_asked(context)
