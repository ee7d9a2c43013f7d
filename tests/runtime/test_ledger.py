"""Device-hours: every attempt counts once, also the killed ones, and the clock on the wall does not matter."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from ekgsearch.errors import StorageError
from ekgsearch.records import PhaseKind
from ekgsearch.rows.run import DeviceHoursRow
from ekgsearch.runtime import ledger as ledger_module
from ekgsearch.runtime.ledger import Clock, Ledger
from ekgsearch.storage import files as files_module
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.sealed import read_sealed, sealed


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_an_attempt_is_wall_time_by_devices(tmp_path: Path, fake_time: list[float]) -> None:
    ledger = Ledger(tmp_path / "ledger", "run")
    with ledger.attempt(PhaseKind.SEARCH, "NVIDIA H200", 4) as clock:
        fake_time[0] += 10
        with clock.working(devices=3):
            fake_time[0] += 20
        clock.busy(7.5)
        fake_time[0] += 6
    expected = DeviceHoursRow(
        run="run",
        phase="search",
        instance="search",
        attempt=1,
        device="NVIDIA H200",
        num_devices=4,
        wall_seconds=36.0,
        busy_seconds=67.5,
        idle_seconds=36 * 4 - 67.5,
        device_hours=36 * 4 / 3600,
        exit_state="finished",
        producer="run",
    )
    assert ledger.rows() == [expected]
    assert Ledger(tmp_path / "ledger", "run").rows() == [expected]


def test_attempts_are_numbered_by_phase_and_summed(tmp_path: Path, fake_time: list[float]) -> None:
    folder = tmp_path / "ledger"
    for phase, hours in ((PhaseKind.FINETUNE, 1), (PhaseKind.SEARCH, 2), (PhaseKind.SEARCH, 3)):
        with Ledger(folder, "run").attempt(phase, "cpu", 2):
            fake_time[0] += hours * 3600
    ledger = Ledger(folder, "run")
    assert [(row.phase, row.attempt) for row in ledger.rows()] == [("search", 1), ("search", 2), ("finetune", 1)]
    assert ledger.device_hours(PhaseKind.SEARCH) == 10
    assert ledger.device_hours() == 12
    assert ledger.device_hours(PhaseKind.BANK) == 0


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(75), "interrupted"),
        (SystemExit(1), "failed"),
    ],
)
def test_the_exit_state_says_how_an_attempt_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    ledger = Ledger(tmp_path, "run")
    with pytest.raises(type(error)), ledger.attempt(PhaseKind.BANK, "cpu", 1):
        raise error
    assert [row.exit_state for row in ledger.rows()] == [state]


def test_an_open_attempt_is_seen_with_its_time_so_far(tmp_path: Path, fake_time: list[float]) -> None:
    ledger = Ledger(tmp_path, "run")
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 3) as clock, clock.working(devices=2):
        fake_time[0] += 50
        (row,) = ledger.rows()
        assert (row.exit_state, row.wall_seconds, row.busy_seconds) == ("open", 50, 100)
        assert ledger.device_hours() == 150 / 3600


def test_work_that_overlaps_in_threads_adds_up(fake_time: list[float]) -> None:
    clock = Clock()
    started, go_on = threading.Barrier(3), threading.Event()

    def work() -> None:
        with clock.working():
            started.wait()
            go_on.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait()
    fake_time[0] += 5
    assert clock.read() == (5, 10)
    go_on.set()
    for thread in threads:
        thread.join()
    assert clock.read() == (5, 10)


def test_work_that_fails_counts_as_well(fake_time: list[float]) -> None:
    clock = Clock()

    def work() -> None:
        with clock.working(devices=2):
            fake_time[0] += 5
            raise RuntimeError("the work")

    with pytest.raises(RuntimeError, match="the work"):
        work()
    fake_time[0] += 5
    assert clock.read() == (10, 10)


def test_more_work_than_was_held_is_not_counted_as_negative_idleness(tmp_path: Path, fake_time: list[float]) -> None:
    ledger = Ledger(tmp_path, "run")
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 1) as clock:
        fake_time[0] += 1
        clock.busy(1.5)
    assert (ledger.rows()[0].busy_seconds, ledger.rows()[0].idle_seconds) == (1.0, 0.0)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_negative_work_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Clock().busy(seconds)


def test_an_attempt_without_devices_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="at least 1 device"),
        Ledger(tmp_path, "run").attempt(PhaseKind.BANK, "cpu", 0),
    ):
        pass


VICTIM = """
import sys, time
from pathlib import Path
from ekgsearch.records import PhaseKind
from ekgsearch.runtime import ledger
ledger.HEARTBEAT_SECONDS = 0.05
with ledger.Ledger(Path(sys.argv[1]), "run").attempt(PhaseKind.SEARCH, "cpu", 2) as clock, clock.working():
    print("ready", flush=True)
    time.sleep(60)
"""


def start_victim(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", VICTIM, str(folder)]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "ready\n"
    return victim


def test_a_killed_attempt_counts_up_to_its_last_heartbeat(tmp_path: Path) -> None:
    start = time.monotonic()
    victim = start_victim(tmp_path)
    time.sleep(0.5)
    assert [row.exit_state for row in Ledger(tmp_path, "run").rows()] == ["open"]
    victim.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)  # it ends, and its number stays taken until `wait` below
    lived = time.monotonic() - start
    ledger = Ledger(tmp_path, "run")
    (row,) = ledger.rows()
    victim.wait()
    assert row.exit_state == "died"
    assert 0.25 < row.wall_seconds < lived
    assert 0.25 < row.busy_seconds <= row.wall_seconds
    assert row.device_hours == row.wall_seconds * 2 / 3600
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 2):
        pass
    assert [(row.attempt, row.exit_state) for row in ledger.rows()] == [(1, "died"), (2, "finished")]


def forge(path: Path, **fields: object) -> None:
    """Change fields of a record and seal it again."""
    path.write_bytes(sealed({**read_sealed(path), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "another.host"},
        {"process": 2**22 + 1, "process_start": 0},  # above the largest number that Linux gives
        {"process_start": 1},
    ],
)
def test_open_attempts_of_others_count_as_dead(tmp_path: Path, fields: dict[str, object]) -> None:
    with Ledger(tmp_path, "run").attempt(PhaseKind.SEARCH, "cpu", 1):
        path = tmp_path / "search-0001.json"
        forge(path)
        assert [row.exit_state for row in Ledger(tmp_path, "run").rows()] == ["open"]
        forge(path, **fields)
        assert [row.exit_state for row in Ledger(tmp_path, "run").rows()] == ["died"]


def test_attempts_that_have_ended_stay_as_they_are_when_their_process_is_gone(tmp_path: Path) -> None:
    with Ledger(tmp_path, "run").attempt(PhaseKind.SEARCH, "cpu", 1):
        pass
    forge(tmp_path / "search-0001.json", process=2**22 + 1)
    assert [row.exit_state for row in Ledger(tmp_path, "run").rows()] == ["finished"]


def test_the_start_of_a_process_is_that_of_the_system() -> None:
    """Also of one whose name has blanks and brackets, which /proc does not escape."""
    code = "open('/proc/self/comm', 'w').write('a) R (b')\nprint(flush=True)\ninput()"
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        assert before * ticks - 2 <= ledger_module._process_start(process.pid) <= after * ticks + 2
    finally:
        process.communicate(b"\n")
    assert ledger_module._process_start(process.pid) == 0


def test_the_number_of_a_record_that_was_moved_away_is_not_given_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    for _ in range(3):
        with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
            pass
    (tmp_path / "search-0001.json").unlink()
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
        pass
    assert [row.attempt for row in ledger.rows()] == [2, 3, 4]


def test_the_end_of_an_attempt_is_recorded_after_its_last_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "HEARTBEAT_SECONDS", 0.001)
    is_writing, written = threading.Event(), threading.Event()

    def slow_heartbeat(path: Path, data: bytes) -> None:
        if threading.current_thread().name == "ledger":
            is_writing.set()
            time.sleep(0.1)
        write_atomically(path, data)
        if threading.current_thread().name == "ledger":
            written.set()

    monkeypatch.setattr(ledger_module, "write_atomically", slow_heartbeat)
    ledger = Ledger(tmp_path, "run")
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
        assert is_writing.wait(10)
        written.clear()
    written.wait(0.5)
    assert [row.exit_state for row in ledger.rows()] == ["finished"]


def test_a_process_with_the_same_number_is_not_taken_for_the_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path, "run")
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
        assert Ledger(tmp_path, "run").rows()[0].exit_state == "open"
        monkeypatch.setattr(ledger_module, "_process_start", lambda process: 1)
        assert Ledger(tmp_path, "run").rows()[0].exit_state == "died"
    assert ledger.rows()[0].exit_state == "finished"


def test_jumps_of_the_wall_clock_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e15 * (time.monotonic_ns() % 2 - 0.5))
    ledger = Ledger(tmp_path, "run")
    with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
        time.sleep(0.01)
    assert 0.01 <= ledger.rows()[0].wall_seconds < 5


def test_a_disk_that_refuses_heartbeats_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "HEARTBEAT_SECONDS", 0.01)
    ledger = Ledger(tmp_path, "run")

    def refuse(path: Path, data: bytes) -> None:
        raise StorageError("cannot write: no space is left")

    recorded = threading.Event()

    def note(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        recorded.set()

    with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
        monkeypatch.setattr(ledger_module, "write_atomically", refuse)
        time.sleep(0.1)
        monkeypatch.setattr(ledger_module, "write_atomically", note)
        assert recorded.wait(10), "heartbeats go on"
    assert caplog.text.count("not recorded for now") == 1
    assert ledger.rows()[0].exit_state == "finished"


def test_an_end_that_cannot_be_recorded_does_not_hide_the_error_of_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path, "run")

    def refuse(path: Path, data: bytes) -> None:
        raise StorageError("no space is left")

    def work() -> None:
        with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
            monkeypatch.setattr(ledger_module, "write_atomically", refuse)
            raise RuntimeError("the work")

    with pytest.raises(RuntimeError, match="the work"):
        work()
    monkeypatch.setattr(ledger_module, "write_atomically", write_atomically)
    with pytest.raises(StorageError, match="no space"), ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
        monkeypatch.setattr(ledger_module, "write_atomically", refuse)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"run":"r","phase":"nap"}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "search-0001.json").write_text(content)
    with pytest.raises(StorageError, match=r"search-0001\.json is no record of an attempt"):
        Ledger(tmp_path, "run")


def test_a_flipped_digit_of_a_record_is_noticed(tmp_path: Path) -> None:
    with Ledger(tmp_path, "run").attempt(PhaseKind.SEARCH, "cpu", 1):
        pass
    path = tmp_path / "search-0001.json"
    path.write_text(path.read_text().replace('"num_devices":1', '"num_devices":7'))
    with pytest.raises(StorageError, match=r"search-0001\.json is no record of an attempt .*expected SHA-256"):
        Ledger(tmp_path, "run")


def test_an_interrupt_between_the_start_and_the_block_is_recorded_as_one(tmp_path: Path) -> None:
    """Nobody leaves the attempt then; its generator ends when it is collected."""
    ledger = Ledger(tmp_path, "run")
    attempt = ledger.attempt(PhaseKind.SEARCH, "cpu", 1)
    attempt.__enter__()
    del attempt
    gc.collect()
    assert [row.exit_state for row in ledger.rows()] == ["interrupted"]


def test_an_interrupt_at_any_line_of_the_start_is_recorded_as_one(tmp_path: Path) -> None:
    """Ctrl-C before every line that runs until the block begins: no record, or one of an interruption."""
    states, line = [], 0
    while not states or states[-1] != "began":
        line += 1
        ledger = Ledger(tmp_path / str(line), "run")
        remaining = [line]

        def interrupt(frame: FrameType, event: str, _: object, remaining: list[int] = remaining) -> object:
            if event == "line" and frame.f_code.co_filename in (ledger_module.__file__, files_module.__file__):
                remaining[0] -= 1
                if remaining[0] == 0:
                    raise KeyboardInterrupt
            return interrupt

        before = sys.gettrace()
        try:
            sys.settrace(interrupt)
            with ledger.attempt(PhaseKind.SEARCH, "cpu", 1):
                sys.settrace(before)
                began = True
        except KeyboardInterrupt:
            began = False
        finally:
            sys.settrace(before)
        states.append("began" if began else ledger.rows()[0].exit_state if ledger.rows() else "nothing")
    assert set(states) == {"nothing", "interrupted", "began"}
    assert states.count("interrupted") > 3


def test_a_phase_of_another_run_costs_nothing_and_is_recorded_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "run")
    for producer in ("first", "first", "second"):
        ledger.shared(PhaseKind.FINETUNE, "finetune-slim", producer)
    rows = Ledger(tmp_path, "run").rows()
    assert [(row.instance, row.producer, row.exit_state, row.device_hours) for row in rows] == [
        ("finetune-slim", producer, "shared", 0) for producer in ("first", "second")
    ]
    with ledger.attempt(PhaseKind.FINETUNE, "cpu", 1, instance="finetune-plain"):
        pass
    assert [(row.attempt, row.instance, row.producer) for row in ledger.rows()][2:] == [(3, "finetune-plain", "run")]
