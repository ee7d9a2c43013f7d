"""Runs whose searches end at different reductions share the teachers that both have."""

import re
import shutil
from pathlib import Path

import pytest
from command_line import RunCommand

from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.objects import open_store


@pytest.mark.slow
def test_a_run_of_another_reduction_computes_only_the_teachers_that_are_new(
    reference: Path, job_file: Path, ekgsearch: RunCommand, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(reference / "bank", shared)
    before = {key: open_store(str(shared)).get(key) for key in open_store(str(shared)).list()}
    other = ("--set", "search.reduction=0.2", "--set", "finetune.epochs=1")
    sharing = ekgsearch("run", job_file, *other, "--set", f"bank.uri={shared}")
    assert sharing.returncode == 0, sharing.stderr
    alone = ekgsearch("run", job_file, *other, "--set", f"output={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    built = {
        name: re.search(r"of the memory bank are to be built, for (\d) of its 3 columns", run.stderr)
        for name, run in (("sharing", sharing), ("alone", alone))
    }
    assert built["sharing"] is not None
    assert built["alone"] is not None
    assert built["alone"][1] == "3"
    assert int(built["sharing"][1]) < 3, "the unpruned network, at least, teaches both"
    assert {key: open_store(str(shared)).get(key) for key in before} == before
    journals = [read_journal(folder / "journal.jsonl") for folder in (job_file.parent / "run", tmp_path / "alone")]
    banks = [next(line for line in lines if line["kind"] == "bank") for lines in journals]
    assert banks[0]["manifest"] == banks[1]["manifest"]
