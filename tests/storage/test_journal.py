"""The journal: one owner, a chain of hashes, torn tails cut off, damage found."""

import errno
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json, content_hash
from ekgsearch.storage import journal as journal_module
from ekgsearch.storage.journal import Journal, read_journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def write_lines(path: Path, count: int = 3) -> list[dict[str, Any]]:
    with Journal.open(path) as journal:
        for number in range(count):
            journal.append("iteration", group=f"layer{number}", loss=number / 7, kept=[1, 2, number])
        return journal.lines


def test_lines_are_numbered_chained_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write_lines(path)
    assert read_journal(path) == lines
    assert [line["seq"] for line in lines] == [0, 1, 2]
    assert [line["prev"] for line in lines] == ["0" * 64, lines[0]["hash"], lines[1]["hash"]]
    for line in lines:
        assert line["hash"] == content_hash({name: value for name, value in line.items() if name != "hash"})


def test_a_continued_journal_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "whole.jsonl", 3)
    for count in range(1, 4):
        with Journal.open(tmp_path / "parts.jsonl") as journal:
            assert len(journal.lines) == count - 1
            number = count - 1
            journal.append("iteration", group=f"layer{number}", loss=number / 7, kept=[1, 2, number])
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@given(kind=st.text(), fields=st.dictionaries(st.text(), JSON, max_size=4))
@settings(max_examples=100, deadline=None)
def test_every_json_value_comes_back_as_append_returned_it(
    tmp_path_factory: pytest.TempPathFactory, kind: str, fields: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("values") / "journal.jsonl"
    fields = {name: value for name, value in fields.items() if name not in ("seq", "kind", "prev", "hash")}
    with Journal.open(path) as journal:
        line = journal.append(kind, **fields)
    assert read_journal(path) == [line]
    assert {name: line[name] for name in fields} == fields


def test_append_returns_tuples_as_the_lists_that_a_reader_sees(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        assert journal.append("x", kept=(1, 2), by_number={10: "a", 9: "b"})["kept"] == [1, 2]
    assert read_journal(tmp_path / "journal.jsonl")[0]["by_number"] == {"9": "b", "10": "a"}


@pytest.mark.parametrize(
    "fields",
    [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}, {"x": b"bytes"}, {"seq": 1}, {"kind": "x"}, {"hash": ""}],
)
def test_values_that_json_cannot_hold_are_refused_and_leave_no_trace(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("first")
        size = path.stat().st_size
        with pytest.raises(StorageError, match="'second'"):
            journal.append("second", **fields)
        assert path.stat().st_size == size
        journal.append("third")
    assert [line["kind"] for line in read_journal(path)] == ["first", "third"]


def test_a_tail_torn_at_any_byte_is_cut_off_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write_lines(path, 2)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for size in range(first, len(data)):
        caplog.clear()
        path.write_bytes(data[:size])
        assert read_journal(path) == lines[:1]
        with Journal.open(path) as journal:
            assert journal.lines == lines[:1]
            assert ("never committed" in caplog.text) == (size > first)
            journal.append("iteration", group="layer1", loss=1 / 7, kept=[1, 2, 1])
        assert path.read_bytes() == data


def test_a_tail_of_lost_sectors_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write_lines(path, 2)
    data = path.read_bytes()
    for tail in (bytes(4096), data[:100] + bytes(600) + b'"}\n'):
        path.write_bytes(data + tail)
        with Journal.open(path) as journal:
            assert journal.lines == lines
        assert path.read_bytes() == data


def test_a_nul_within_the_last_line_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_lines(path, 2)
    path.write_bytes(path.read_bytes()[:-3] + b"\0}\n")
    with pytest.raises(StorageError, match="line 2 of 2 is damaged"):
        read_journal(path)


def test_lines_and_names_are_on_the_disk_when_a_call_returns(tmp_path: Path, disk_calls: list[str]) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        assert f"fsync {tmp_path.name}" in disk_calls, "the name of a new journal"
        disk_calls.clear()
        journal.append("first")
        assert disk_calls == ["write journal.jsonl", "fsync journal.jsonl"]
    with open(path, "ab") as file:
        file.write(b"torn")
    disk_calls.clear()
    Journal.open(path).close()
    assert disk_calls[-2:] == ["ftruncate journal.jsonl", "fsync journal.jsonl"]


def test_a_line_that_cannot_be_synced_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal.open(path) as journal:
        first = journal.append("first")
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            with pytest.raises(StorageError, match="Input/output error"):
                journal.append("second")
        assert journal.lines == read_journal(path) == [first]
        with pytest.raises(StorageError, match="an earlier write to it failed"):
            journal.append("third")
    assert path.read_bytes() == canonical_json(first).encode() + b"\n"


def test_a_damaged_journal_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write_lines(path)
    data = path.read_bytes()
    path.write_bytes(b"x" + data)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(StorageError, match="is damaged"):
            Journal.open(path)
    assert len(os.listdir("/proc/self/fd")) == before
    path.write_bytes(data)
    with Journal.open(path) as journal:
        assert journal.lines == lines


def test_a_broken_line_is_an_error_that_names_it_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_lines(path)
    rows = path.read_bytes().splitlines(keepends=True)
    for number in range(3):
        broken = rows.copy()
        broken[number] = broken[number].replace(b"layer", b"Layer")
        path.write_bytes(b"".join(broken))
        for action in (Journal.open, read_journal):
            with pytest.raises(StorageError, match=rf"journal\.jsonl, line {number + 1} of 3 is damaged"):
                action(path)
        assert path.read_bytes() == b"".join(broken)


def test_a_removed_repeated_or_swapped_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_lines(path)
    a, b, c = path.read_bytes().splitlines(keepends=True)
    for rows in ([b, c], [a, c], [a, b, b, c], [b, a, c], [a, b, c, c], [a, b"\n", b, c]):
        path.write_bytes(b"".join(rows))
        with pytest.raises(StorageError, match="is damaged"):
            read_journal(path)


def sealed_again(line: dict[str, Any], **changes: Any) -> bytes:
    """A line with other fields and the hash that belongs to them."""
    content = {name: value for name, value in {**line, **changes}.items() if name != "hash"}
    return canonical_json({**content, "hash": content_hash(content)}).encode() + b"\n"


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("changes", [{"prev": "1" * 64}, {"seq": 7}, {"seq": -1}])
def test_a_line_with_a_right_hash_but_another_link_or_number_is_found(
    tmp_path: Path, number: int, changes: dict[str, Any]
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write_lines(path)
    rows = path.read_bytes().splitlines(keepends=True)[:number]
    rows[-1] = sealed_again(lines[number - 1], **changes)
    path.write_bytes(b"".join(rows))
    with pytest.raises(StorageError, match=rf"line {number} of {number} is damaged"):
        read_journal(path)
    rows[-1] = sealed_again(lines[number - 1])
    path.write_bytes(b"".join(rows))
    assert read_journal(path) == lines[:number]


def test_a_line_with_a_right_hash_but_other_spelling_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_lines(path, 1)
    line = json.loads(path.read_bytes())
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(StorageError, match="line 1 of 1 is damaged"):
        read_journal(path)


def check_mutation_is_found(data: bytes, position: int, mask: int, path: Path) -> None:
    """A flipped byte is an error, or turns the last line into a torn one that the next driver redoes."""
    changed = bytearray(data)
    changed[position] ^= mask
    path.write_bytes(changed)
    if position == len(data) - 1 and changed[position] != ord("\n"):
        assert len(read_journal(path)) == data.count(b"\n") - 1
    else:
        with pytest.raises(StorageError, match=r"line \d+ of \d+ is damaged"):
            read_journal(path)


@pytest.fixture(scope="module")
def sound_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "journal.jsonl"
    write_lines(path, 4)
    return path.read_bytes()


@given(position=st.integers(0, 10**6), mask=st.integers(1, 255))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_byte_is_found(sound_bytes: bytes, tmp_path: Path, position: int, mask: int) -> None:
    check_mutation_is_found(sound_bytes, position % len(sound_bytes), mask, tmp_path / "journal.jsonl")


@pytest.mark.slow
def test_every_flipped_bit_of_every_byte_is_found(sound_bytes: bytes, tmp_path: Path) -> None:
    for position in range(len(sound_bytes)):
        for bit in range(8):
            check_mutation_is_found(sound_bytes, position, 1 << bit, tmp_path / "journal.jsonl")


def test_a_second_driver_is_refused_and_told_who_holds_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    (tmp_path / "journal.jsonl.lock").write_text("process 1 on host with-a-long-name\n" * 9)
    code = f"from pathlib import Path\nfrom ekgsearch.storage.journal import Journal\nJournal.open(Path({str(path)!r}))"
    with Journal.open(path) as journal:
        with pytest.raises(
            StorageError, match=rf"held by another driver: process {os.getpid()} on host \S+ \(lock file .*\.lock"
        ):
            Journal.open(path)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode == 1
        assert f"held by another driver: process {os.getpid()}" in other.stderr
        journal.append("still mine")
    with Journal.open(path) as journal:
        assert [line["kind"] for line in journal.lines] == ["still mine"]


RACER = """
import os, sys, time
from pathlib import Path
from ekgsearch.errors import StorageError
from ekgsearch.storage.journal import Journal
folder, starts = Path(sys.argv[1]), int(sys.argv[2])

def wait(start, kind):
    (folder / f"{kind}-{start}-{os.getpid()}").touch()
    while len(list(folder.glob(f"{kind}-{start}-*"))) < 2:
        time.sleep(0.0002)

for start in range(starts):
    wait(start, "ready")
    try:
        with Journal.open(folder / f"{start}.jsonl") as journal:
            journal.append("owner")
            wait(start, "tried")
        print("won", flush=True)
    except StorageError as error:
        assert "held by another driver" in str(error), error
        wait(start, "tried")
        print("refused", flush=True)
"""


def test_of_two_drivers_started_at_once_exactly_one_owns_the_journal(tmp_path: Path) -> None:
    starts = 100
    command = [sys.executable, "-c", RACER, str(tmp_path), str(starts)]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outcomes = []
    for driver in drivers:
        out, _ = driver.communicate(timeout=60)
        assert driver.returncode == 0
        outcomes.append(out.split())
    assert [pair.count("won") for pair in zip(*outcomes, strict=True)] == [1] * starts
    assert [len(read_journal(tmp_path / f"{start}.jsonl")) for start in range(starts)] == [1] * starts


def test_the_lock_goes_with_a_killed_driver_even_when_its_forked_child_lives(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = (
        "import os, time\nfrom pathlib import Path\nfrom ekgsearch.storage.journal import Journal\n"
        f"journal = Journal.open(Path({str(path)!r}))\njournal.append('first')\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.close(1)\n    os.close(2)\n    time.sleep(20)\n    os._exit(0)\n"
        "print(child, flush=True)\ntime.sleep(0.1)\nos.kill(os.getpid(), 9)\n"
    )
    driver = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    child = int(driver.stdout)
    try:
        os.kill(child, 0)
        with Journal.open(path) as journal:
            assert [line["kind"] for line in journal.lines] == ["first"]
    finally:
        os.kill(child, 9)


def test_a_full_disk_stops_the_journal_without_a_torn_line_and_it_continues_later(small_disk: Path) -> None:
    path = small_disk / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("first")
        size = path.stat().st_size
        (small_disk / "filler").write_bytes(bytes((1 << 20) - 2 * 4096))
        with pytest.raises(StorageError, match=r"no space is left; 9\d{3} bytes are needed, \d+ bytes are free"):
            journal.append("second", text="x" * 9000)
        assert path.stat().st_size == size
        with pytest.raises(StorageError, match="open it again"):
            journal.append("third")
    (small_disk / "filler").unlink()
    with Journal.open(path) as journal:
        journal.append("second", text="x" * 9000)
    assert [line["kind"] for line in read_journal(path)] == ["first", "second"]


def test_a_read_only_disk_is_named(read_only_disk: Path) -> None:
    with pytest.raises(StorageError, match="the file system is read-only"):
        Journal.open(read_only_disk / "journal.jsonl")


def test_a_vanished_or_replaced_journal_is_not_written_into_the_void(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("first")
        path.rename(folder / "moved.jsonl")
        with pytest.raises(StorageError, match="does not exist"):
            journal.append("second")
    with Journal.open(path) as journal:
        path.unlink()
        path.write_bytes(b"")
        with pytest.raises(StorageError, match="replaced by another file"):
            journal.append("second")
    with pytest.raises(StorageError, match="folder does not exist"):
        Journal.open(tmp_path / "none" / "journal.jsonl")


def test_a_closed_journal_refuses_lines(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        pass
    with pytest.raises(StorageError, match="is closed"):
        journal.append("late")


def test_clock_jumps_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "steady.jsonl")
    jumps = iter([0.0, 1e12, -5.0, 7.0] * 100)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(jumps)))
    write_lines(tmp_path / "jumpy.jsonl")
    assert (tmp_path / "jumpy.jsonl").read_bytes() == (tmp_path / "steady.jsonl").read_bytes()


def test_deeply_nested_garbage_is_damage_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(StorageError, match="line 1 of 1 is damaged"):
        read_journal(path)


def test_reading_while_a_line_is_being_written_sees_the_committed_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal, caplog.at_level(logging.WARNING, journal_module.__name__):
        first = journal.append("first")
        with open(path, "ab") as file:
            file.write(canonical_json({"seq": 1}).encode())
        assert read_journal(path) == [first]
