"""Whole runs whose memory bank lives in a bucket of a real server."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import RunCommand
from object_storage import FaultProxy, s3_uri

from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.objects import open_store

SHORT = ["search.reduction=0.1", "pretrain.epochs=1", "finetune.epochs=1"]


def settings(*fields: str) -> list[str]:
    return [part for field in fields for part in ("--set", field)]


def bank_line(journal: Path) -> dict[str, Any]:
    return next(line for line in read_journal(journal) if line["kind"] == "bank")


@pytest.mark.slow
def test_a_run_builds_and_reads_its_bank_in_a_bucket(
    job_file: Path, ekgsearch: RunCommand, s3_server: FaultProxy, tmp_path: Path
) -> None:
    s3_server.faults = ["", "503", "", "reset"]
    where = [f"bank.uri={s3_server.store_uri}", f"bank.cache={tmp_path / 'node'}", "bank.resident=true"]
    finished = ekgsearch("run", job_file, *settings(*SHORT, *where, "bank.dtype=int8"))
    assert finished.returncode == 0, finished.stderr
    assert "create-once writes: yes" in finished.stderr
    assert len(list((tmp_path / "node").glob("*.rows"))) == 1
    run = job_file.parent / "run"
    assert not (run / "bank").exists()
    assert not (run / "bank-cache").exists()
    keys = open_store(s3_server.direct_uri).list()
    manifests = 1 + len(bank_line(run / "journal.jsonl")["teachers"])  # of the bank and of its columns
    assert sum(key.endswith("/manifest.json") for key in keys) == manifests
    assert sum(key.endswith(".safetensors") for key in keys) == len(keys) - manifests > 0
    s3_server.stop()
    again = ekgsearch("run", job_file, *settings(*SHORT, *where, "bank.dtype=int8"))
    assert again.returncode == 0, "a run that is finished does not need the store: " + again.stderr


@pytest.mark.slow
def test_what_is_wrong_with_a_bucket_is_said_before_any_work(
    job_file: Path, ekgsearch: RunCommand, s3_server: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str, text: str) -> None:
        finished: subprocess.CompletedProcess[str] = ekgsearch("run", job_file, *settings(*SHORT, f"bank.uri={uri}"))
        assert finished.returncode == 2, finished.stderr
        assert text in finished.stderr
        assert "Traceback" not in finished.stderr
        assert '"kind":"begin"' not in (job_file.parent / "run" / "journal.jsonl").read_text()

    refused(s3_server.store_uri.replace("us-east-1", "mars"), "the region is wrong: expected 'us-east-1', found 'mars'")
    refused(s3_uri(s3_server.target, "no-bucket/runs"), "has no bucket 'no-bucket'")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-of-another-person")
    refused(s3_server.store_uri, "the credentials are wrong or have expired")


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_a_cluster_fill_the_same_bank_in_a_bucket(
    job_file: Path, ekgsearch: RunCommand, s3_server: FaultProxy, tmp_path: Path
) -> None:
    alone = ekgsearch("run", job_file, *settings(*SHORT))
    assert alone.returncode == 0, alone.stderr
    workers = ["cluster.search_workers=2", "cluster.cpus_per_worker=0.5", f"output={tmp_path / 'two'}"]
    together = ekgsearch("run", job_file, *settings(*SHORT, *workers, f"bank.uri={s3_server.store_uri}"))
    assert together.returncode == 0, together.stderr
    expected = bank_line(job_file.parent / "run" / "journal.jsonl")
    assert bank_line(tmp_path / "two" / "journal.jsonl")["manifest"] == expected["manifest"]
