"""A writer killed at any system call leaves the old state or the new one, and the next one continues."""

import subprocess
import sys
from pathlib import Path

import pytest

from ekgsearch.records import PhaseKind
from ekgsearch.rows.search import SubnetworkRow
from ekgsearch.runtime.checkpoint import load_state
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.files import PARTIAL_SUFFIX, remove_partials
from ekgsearch.storage.journal import Journal, read_journal
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.tables import append_rows, read_table

PROGRAM = Path(__file__).with_name("kill_points.py")


def run(scenario: str, base: Path, at_least: int) -> list[Path]:
    """Folders left by every kill point, the last by the run that ended well."""
    command = [sys.executable, str(PROGRAM), scenario, str(base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    assert count >= at_least
    return [base / str(point) for point in range(count)]


def test_a_file_is_old_or_new_at_every_kill_point(tmp_path: Path) -> None:
    folders = run("file", tmp_path, at_least=10)
    contents = [(folder / "a").read_bytes() for folder in folders]
    is_new = [content == b"new" * 5000 for content in contents]
    assert all(new or content == b"old" * 5000 for new, content in zip(is_new, contents, strict=True))
    assert is_new == sorted(is_new)
    assert is_new[0] is False
    assert is_new[-1] is True
    assert sum(remove_partials(folder) for folder in folders) >= 5
    assert not any(PARTIAL_SUFFIX in path.name for path in tmp_path.rglob("*"))


def test_a_journal_killed_anywhere_continues_to_the_same_bytes(tmp_path: Path) -> None:
    folders = run("journal", tmp_path, at_least=20)
    whole = (folders[-1] / "journal.jsonl").read_bytes()
    counts = []
    for folder in folders:
        path = folder / "journal.jsonl"
        counts.append(len(read_journal(path)))
        with Journal.open(path) as journal:
            for number in range(len(journal.lines), 3):
                journal.append("iteration", number=number, kept=list(range(100)))
        assert path.read_bytes() == whole
    assert counts == sorted(counts)
    assert set(counts) == {1, 2, 3}


@pytest.mark.parametrize("again", [False, True])
def test_a_table_has_the_old_or_the_new_rows_at_every_kill_point(tmp_path: Path, again: bool) -> None:
    folders = run("table", tmp_path, at_least=10)
    counts = [len(read_table(folder / "a.parquet")) for folder in folders]
    assert counts == sorted(counts)
    assert set(counts) == {1, 2}
    if again:
        row = SubnetworkRow("r", 2, -1, "g", 2, 1, "[0]")
        for folder, count in zip(folders, counts, strict=True):
            append_rows(folder / "a.parquet", [row], SubnetworkRow)
            assert len(read_table(folder / "a.parquet")) == count + 1


def test_a_checkpoint_is_the_old_or_the_new_one_at_every_kill_point(tmp_path: Path) -> None:
    epochs = []
    for folder in run("checkpoint", tmp_path, at_least=10):
        state = load_state(folder / "checkpoint")
        epochs.append(state["epoch"])
        assert state["weights"].tolist() == [float(state["epoch"])] * 100
    assert epochs == sorted(epochs)
    assert set(epochs) == {1, 2}


def test_a_ledger_keeps_every_recorded_attempt_at_every_kill_point(tmp_path: Path) -> None:
    states = []
    for folder in run("ledger", tmp_path, at_least=20):
        rows = Ledger(folder / "ledger", "r").rows()
        assert (rows[0].phase, rows[0].attempt, rows[0].exit_state) == (PhaseKind.SEARCH, 1, "finished")
        states.append(rows[1].exit_state if len(rows) == 2 else "none")
        with Ledger(folder / "ledger", "r").attempt(PhaseKind.SEARCH, "cpu", 1):
            pass
        assert Ledger(folder / "ledger", "r").rows()[-1].attempt == len(rows) + 1
    assert states == sorted(states, key=["none", "died", "finished"].index)
    assert set(states) == {"none", "died", "finished"}


def test_a_store_holds_whole_objects_only_at_every_kill_point(tmp_path: Path) -> None:
    listings = []
    for folder in run("store", tmp_path, at_least=20):
        store = open_store(str(folder / "store"))
        listings.append(store.list())
        assert store.get("a") in (b"old", b"new")
        if "deep/b" in listings[-1]:
            assert store.get("deep/b") == b"new"
            assert store.get("a") == b"new"
    assert listings[0] == ["a"]
    assert listings[-1] == ["a", "deep/b"]
