"""A memory bank that is lost or damaged before it has been used is built again, and the run ends as any other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command_line import RunCommand

from ekgsearch.storage.journal import read_journal


def interrupted_after_the_bank(reference: Path, run: Path) -> None:
    """Copy a finished run and take away what came after its memory bank."""
    shutil.copytree(reference, run)
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    last = next(index for index, line in enumerate(lines) if b'"kind":"bank"' in line)
    (run / "journal.jsonl").write_bytes(b"".join(lines[: last + 1]))
    for path in [*(run / "training").glob("slim*"), run / "bank-cache"]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (run / "final.safetensors").unlink()


def lose_a_block(bank: Path) -> None:
    next(bank.rglob("block-000001-*")).unlink()


def damage_a_block_and_the_manifest(bank: Path) -> None:
    shard = next(bank.rglob("block-000000-*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    next(bank.rglob("manifest.json")).write_bytes(b"{")


@pytest.mark.parametrize(
    ("lose", "settings"),
    [
        (lose_a_block, ()),
        pytest.param(shutil.rmtree, (), marks=pytest.mark.slow),
        pytest.param(damage_a_block_and_the_manifest, (), marks=pytest.mark.slow),
        pytest.param(lambda bank: None, ("--set", "bank.uri={elsewhere}"), marks=pytest.mark.slow),
    ],
)
def test_a_bank_that_is_not_there_any_more_is_built_again(
    lose: Callable[[Path], None],
    settings: tuple[str, ...],
    reference: Path,
    job_file: Path,
    ekgsearch: RunCommand,
    tmp_path: Path,
) -> None:
    run = job_file.parent / "run"
    interrupted_after_the_bank(reference, run)
    lose(run / "bank")
    finished = ekgsearch("run", job_file, *(part.format(elsewhere=tmp_path / "elsewhere") for part in settings))
    assert finished.returncode == 0, finished.stderr
    assert (run / "journal.jsonl").read_bytes() == (reference / "journal.jsonl").read_bytes()
    assert (run / "final.safetensors").read_bytes() == (reference / "final.safetensors").read_bytes()
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    assert hours[hours.phase == "bank"].exit_state.tolist() == ["finished", "finished"]


@pytest.mark.slow
def test_a_bank_that_is_there_is_not_built_again_nor_one_that_is_not_needed(
    reference: Path, job_file: Path, ekgsearch: RunCommand
) -> None:
    run = job_file.parent / "run"
    interrupted_after_the_bank(reference, run)
    for _ in range(2):
        finished = ekgsearch("run", job_file)
        assert finished.returncode == 0, finished.stderr
        shutil.rmtree(run / "bank", ignore_errors=True)
    assert [line["hash"] for line in read_journal(run / "journal.jsonl")] == [
        line["hash"] for line in read_journal(reference / "journal.jsonl")
    ]
    assert len(list((run / "ledger").glob("bank-*"))) == 1
