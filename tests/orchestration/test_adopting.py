"""A run that adopts the search of another one: what it takes over, and what it refuses."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import JOB, RunCommand

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.jobfile import fields_text, load_job
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.zoo import build
from ekgsearch.pipeline.adopt import FoundSearch, adopt, find_search
from ekgsearch.pipeline.pretrain import save_initial
from ekgsearch.pipeline.setup import set_up
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal, read_journal
from ekgsearch.storage.tensors import save_tensors


def content(line: dict[str, Any]) -> dict[str, Any]:
    """What a journal line records, without its place in the chain."""
    return {name: value for name, value in line.items() if name not in ("seq", "kind", "prev", "hash")}


def test_an_adopted_search_ends_in_the_same_network_without_searching(
    reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    bank = os.path.relpath(reference / "bank")
    settings = ("--set", f"search_run={reference}", "--set", f"bank.uri={bank}")
    finished = ekgsearch("run", job_file, *settings)
    assert finished.returncode == 0, finished.stderr
    run = job_file.parent / "run"
    assert (run / "final.safetensors").read_bytes() == (reference / "final.safetensors").read_bytes()
    assert [line["kind"] for line in read_journal(run / "journal.jsonl")] == [
        line["kind"] for line in read_journal(reference / "journal.jsonl")
    ]
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    assert set(hours.phase) == {"bank", "finetune", "evaluate"}
    assert ekgsearch("run", job_file, *settings).returncode == 0


def test_an_adoption_that_was_killed_is_completed(reference: Path, job_file: Path) -> None:
    """The copy is cut off after any number of lines; another search in the run directory is refused."""
    job = load_job(job_file, [f"search_run={reference}"])
    job.run_dir.mkdir()
    found = find_search(set_up(job))
    first = content(read_journal(reference / "journal.jsonl")[0])
    for count in (0, 1, 3, len(found.lines)):
        with Journal.open(job.run_dir / f"{count}.jsonl") as journal:
            for line in [{"kind": "run", **first}, *found.lines[:count]]:
                journal.append(line["kind"], **content(line))
            adopt(found, job, journal)
            assert [line["hash"] for line in journal.lines[1:]] == [line["hash"] for line in found.lines]
    with Journal.open(job.run_dir / "other.jsonl") as journal:
        journal.append("run", **first)
        journal.append("pretrain", file="initial.safetensors", sha256="0")
        with pytest.raises(ResumeError, match="has decisions that are not those of search_run"):
            adopt(found, job, journal)


def test_a_journal_whose_files_lead_out_of_its_run_is_not_adopted(tmp_path: Path, job_file: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "x").write_bytes(b"canary")
    job = load_job(job_file)
    job.run_dir.mkdir()
    for name in ("../x", str(tmp_path / "x")):
        line = {"kind": "pretrain", "file": name, "sha256": file_sha256(tmp_path / "x")}
        with Journal.open(job.run_dir / "journal.jsonl") as journal:
            with pytest.raises(StorageError, match="expected a relative name below"):
                adopt(FoundSearch(tmp_path / "source", (line,)), job, journal)
            assert journal.lines == []
    assert sorted(path.name for path in job.run_dir.iterdir()) == ["journal.jsonl", "journal.jsonl.lock"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["search_run={reference}", "search.step=0.2"], "search.step is 0.4 there and 0.2 here"),
        (["search_run={reference}", "seed=2"], "seed is 1 there and 2 here"),
        (["search_run=/nowhere"], "found no /nowhere/journal.jsonl"),
    ],
)
def test_another_search_is_not_adopted(settings: list[str], message: str, reference: Path, job_file: Path) -> None:
    with pytest.raises(JobError, match=message):
        find_search(set_up(load_job(job_file, [text.format(reference=reference) for text in settings])))


def test_a_search_from_other_weights_is_not_adopted(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        JOB.format(output=tmp_path / "run").replace("net: {name: resnet20}", "net: {name: resnet20, weights: a}")
    )
    for name, seed in (("a", 1), ("b", 2)):
        save_tensors(
            tmp_path / f"{name}.safetensors", build(NetSpec("resnet20", 10, (3, 8, 8)), seed=seed).state_dict(), {}
        )
    fields = [f"net.weights={tmp_path / 'a.safetensors'}"]
    setup = set_up(load_job(job, fields))
    setup.job.run_dir.mkdir()
    (setup.job.run_dir / "job.yaml").write_text(fields_text(setup.job))
    with Journal.open(setup.job.run_dir / "journal.jsonl") as journal:
        journal.append("run", job=setup.job.sha256, **setup.facts)
        journal.append(
            "pretrain", file="initial.safetensors", sha256=file_sha256(save_initial(setup, setup.job.run_dir))
        )
        journal.append("search", file="initial.safetensors", sha256="0", subnetwork="0")
    adopting = [f"search_run={setup.job.run_dir}", f"output={tmp_path / 'other'}"]
    assert len(find_search(set_up(load_job(job, [*fields, *adopting]))).lines) == 2
    with pytest.raises(JobError, match=r"the weights in net.weights = .*b.safetensors differ"):
        find_search(set_up(load_job(job, [f"net.weights={tmp_path / 'b.safetensors'}", *adopting])))


@pytest.mark.slow
def test_a_run_of_two_threads_holds_two_cores(job_file: Path, ekgsearch: RunCommand, reference: Path) -> None:
    settings = ("--set", f"search_run={reference}", "--set", "cluster.threads_per_worker=2")
    finished = ekgsearch("run", job_file, *settings)
    assert finished.returncode == 0, finished.stderr
    hours = pd.read_parquet(job_file.parent / "run" / "tables" / "device_hours.parquet").set_index("phase")
    for phase in ("bank", "finetune"):
        row = hours.loc[phase]
        assert row.num_devices == 2, phase
        assert row.device_hours == pytest.approx(2 * row.wall_seconds / 3600)
        assert row.wall_seconds < row.busy_seconds <= 2 * row.wall_seconds
