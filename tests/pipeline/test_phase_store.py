"""The phase store on a folder and on the S3 server: first stored wins, damage is named, killed holders are replaced."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_storage import FaultProxy, Swift, s3_uri

from ekgsearch.errors import Stopped, StorageError
from ekgsearch.pipeline.phase_record import PhaseRecord, StoredPhase
from ekgsearch.pipeline.phase_store import PhaseStore
from ekgsearch.storage.claims import Pace
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.sealed import sealed

KEY = "a" * 64
OTHER = "b" * 64
QUICK = Pace(lease_seconds=1, beat_seconds=0.2, poll_seconds=0.1)


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    server: FaultProxy = request.getfixturevalue("s3_server")
    return server.direct_uri


@pytest.fixture
def folder_uri(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def run_folder(root: Path, name: str, **files: bytes) -> Path:
    folder = root / name
    (folder / "tables").mkdir(parents=True)
    for file, data in files.items():
        (folder / file.replace("__", "/")).write_bytes(data)
    return folder


def record(producer: str) -> PhaseRecord:
    return PhaseRecord(producer=producer, fields={"loss": 0.5, "shape": [1, 2]}, inputs={"seed": 1, "net": {"é": None}})


def keep(store: PhaseStore, root: Path, producer: str = "one", key: str = KEY, **files: bytes) -> StoredPhase:
    files = files or {"slim": b"weights", "tables__rows": b"rows", "empty": b""}
    folder = run_folder(root, producer, **files)
    return store.keep(key, record(producer), [name.replace("__", "/") for name in files], folder)


def test_a_kept_phase_is_found_and_its_files_are_copied(uri: str, tmp_path: Path) -> None:
    store = PhaseStore.open(uri)
    assert store.find(KEY) is None
    kept = keep(store, tmp_path)
    found = PhaseStore.open(uri).find(KEY)
    assert found == kept
    assert (found.key, found.producer) == (KEY, "one")
    assert (found.fields, found.inputs) == ({"loss": 0.5, "shape": [1, 2]}, {"seed": 1, "net": {"é": None}})
    assert {name: file.num_bytes for name, file in found.files.items()} == {"slim": 7, "tables/rows": 4, "empty": 0}
    target = tmp_path / "another run"
    target.mkdir()
    (target / "slim").write_bytes(b"what was there")
    store.fetch(found, target)
    copied = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert copied == {"slim": b"weights", "tables/rows": b"rows", "empty": b""}


def test_the_first_of_two_writers_wins_and_both_have_its_bytes(uri: str, tmp_path: Path) -> None:
    first, second = PhaseStore.open(uri), PhaseStore.open(uri)
    kept = keep(first, tmp_path, "one", slim=b"rounded up", only=b"here")
    adopted = keep(second, tmp_path, "two", slim=b"rounded down")
    assert adopted == kept
    assert adopted.producer == "one"
    second.fetch(adopted, tmp_path / "two")
    assert (tmp_path / "two" / "slim").read_bytes() == b"rounded up"
    assert (tmp_path / "two" / "only").read_bytes() == b"here"


def test_a_winner_that_was_overwritten_adopts_what_is_stored(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers look first and write then, and tell two writers of the same moment that they have won."""
    first, second = PhaseStore.open(folder_uri), PhaseStore.open(folder_uri)
    monkeypatch.setattr(LocalStore, "create", lambda self, key, data: (self.put(key, data), keep_other(), True)[2])

    def keep_other() -> None:
        monkeypatch.setattr(LocalStore, "create", lambda self, key, data: (self.put(key, data), True)[1])
        keep(second, tmp_path, "two", slim=b"theirs")

    assert keep(first, tmp_path, "one", slim=b"mine").producer == "two"


def test_the_layout_is_the_documented_one(folder_uri: str, tmp_path: Path) -> None:
    store = PhaseStore.open(folder_uri)
    kept = keep(store, tmp_path, slim=b"same", copy=b"same")
    store.keep_decision(KEY, 1, {}, "one")
    sha256 = kept.files["slim"].sha256
    assert open_store(folder_uri).list() == sorted(
        [f"phases/files/{sha256}", f"phases/{KEY}/result.json", f"phases/{KEY}/decisions/000001.json"]
    )


def test_a_record_names_only_files_that_are_stored(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[str] = []
    put, create = LocalStore.put, LocalStore.create
    monkeypatch.setattr(LocalStore, "put", lambda self, key, data: (writes.append(key), put(self, key, data))[1])
    monkeypatch.setattr(LocalStore, "create", lambda self, key, data: (writes.append(key), create(self, key, data))[1])
    keep(PhaseStore.open(folder_uri), tmp_path)
    assert [key.startswith("phases/files/") for key in writes] == [True, True, True, False]


def test_damage_is_named_with_what_to_do_and_healed_by_it(uri: str, tmp_path: Path) -> None:
    store, objects = PhaseStore.open(uri), open_store(uri)
    kept = keep(store, tmp_path)
    key = f"phases/files/{kept.files['slim'].sha256}"
    for word, damage in (
        ("damaged", lambda: objects.put(key, b"wEights")),
        ("damaged", lambda: objects.put(key, b"weight")),
        ("missing", lambda: objects.delete(key)),
    ):
        damage()
        with pytest.raises(StorageError, match=f"{key}.*'slim'.*{word}.*remove 'phases/{KEY}/result.json'"):
            store.fetch(kept, tmp_path / "target")
        assert not (tmp_path / "target" / "slim").exists()
    objects.put(key, b"wEights")
    objects.delete(f"phases/{KEY}/result.json")
    again = keep(store, tmp_path, "again")
    store.fetch(again, tmp_path / "target")
    assert (tmp_path / "target" / "slim").read_bytes() == b"weights"


def test_every_flipped_byte_of_a_record_is_noticed(folder_uri: str, tmp_path: Path) -> None:
    store, objects = PhaseStore.open(folder_uri), LocalStore(Path(folder_uri))
    keep(store, tmp_path, slim=b"1")
    store.keep_decision(KEY, 1, {"kept": [1, 2]}, "one")
    for name, read in (
        (f"phases/{KEY}/result.json", lambda: store.find(KEY)),
        (f"phases/{KEY}/decisions/000001.json", lambda: store.decision(KEY, 1)),
    ):
        data = objects.get(name)
        (Path(folder_uri) / name).unlink()
        for position in range(len(data)):
            damaged = bytearray(data)
            damaged[position] ^= 1
            (Path(folder_uri) / name).write_bytes(damaged)
            with pytest.raises(StorageError, match=f"{name}.*damaged.*remove this object"):
                read()
        for damaged in (b"", b"[]", b"null", b"\xff", data[:-1], b"[" * 100_000):
            (Path(folder_uri) / name).write_bytes(damaged)
            with pytest.raises(StorageError, match=f"{name}.*damaged"):
                read()


@pytest.mark.parametrize(
    "change",
    [
        {"key": OTHER},
        {"producer": 1},
        {"fields": []},
        {"inputs": None},
        {"files": ["slim"]},
        {"files": {"slim": "text"}},
        {"files": {"slim": {"sha256": "../../" + "a" * 58, "num_bytes": 1}}},
        {"files": {"slim": {"sha256": "a" * 64, "num_bytes": "1"}}},
        {"files": {"slim": {"sha256": "a" * 64, "num_bytes": 1, "more": 1}}},
    ],
)
def test_a_whole_record_of_another_form_is_refused(folder_uri: str, change: dict[str, object]) -> None:
    value = {"key": KEY, "producer": "one", "fields": {}, "inputs": {}, "files": {}}
    LocalStore(Path(folder_uri)).put(f"phases/{KEY}/result.json", sealed({**value, **change}))
    with pytest.raises(StorageError, match="damaged: expected the record of the phase"):
        PhaseStore.open(folder_uri).find(KEY)


@pytest.mark.parametrize("name", ["../canary", "/tmp/canary", "a/../../canary", "", "C:\\canary", "out/canary", "a\0b"])
def test_names_that_lead_out_are_refused_before_anything_is_written(folder_uri: str, tmp_path: Path, name: str) -> None:
    store, target = PhaseStore.open(folder_uri), tmp_path / "target"
    target.mkdir()
    (target / "out").symlink_to(tmp_path)
    (tmp_path / "canary").write_bytes(b"alive")
    kept = keep(store, tmp_path)
    files = {"slim": kept.files["slim"], name: kept.files["slim"]}
    stored = StoredPhase(key=KEY, producer="one", fields={}, inputs={}, files=files)
    with pytest.raises(StorageError, match="name"):
        store.fetch(stored, target)
    with pytest.raises(StorageError, match="name"):
        store.keep(OTHER, record("one"), [name], target)
    assert (tmp_path / "canary").read_bytes() == b"alive"
    assert [path.name for path in target.iterdir()] == ["out"]


@pytest.mark.parametrize("key", ["", "files", "..", "a/b", ".hidden", "a" * 300, "a\n", "claims/../x"])
def test_keys_that_are_no_hash_are_refused(folder_uri: str, tmp_path: Path, key: str) -> None:
    store = PhaseStore.open(folder_uri)
    with pytest.raises(StorageError, match="cannot be that of a phase"):
        store.find(key)
    with pytest.raises(StorageError, match="cannot be that of a phase"):
        store.decision(key, 1)
    with pytest.raises(StorageError, match="expected a number from 0"):
        store.decision(KEY, -1)


def test_what_is_no_json_is_refused(folder_uri: str, tmp_path: Path) -> None:
    store = PhaseStore.open(folder_uri)
    for value in ({"loss": float("nan")}, {"path": tmp_path}, {"text": "\ud800"}):
        with pytest.raises(StorageError, match="cannot be written as JSON"):
            store.keep(KEY, PhaseRecord(producer="one", fields=value, inputs={}), [], tmp_path)
        with pytest.raises(StorageError, match="cannot be written as JSON"):
            store.keep_decision(KEY, 1, value, "one")
    assert store.find(KEY) is None


def test_a_bucket_without_create_once_writes_is_refused(careless_swift: Swift) -> None:
    with pytest.raises(StorageError, match=r"server ignores the condition If-None-Match.*use a folder") as caught:
        PhaseStore.open(s3_uri(careless_swift.port, "bucket/runs"))
    assert "phases.uri" in str(caught.value)


def test_a_folder_without_hard_links_is_refused(folder_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"no hard links.*use a folder"):
        PhaseStore.open(folder_uri)


def test_decisions_are_stored_one_by_one_and_the_first_wins(uri: str) -> None:
    store = PhaseStore.open(uri)
    assert store.decision(KEY, 1) is None
    assert store.keep_decision(KEY, 1, {"cut": "a"}, "one") == ({"cut": "a"}, "one")
    assert store.keep_decision(KEY, 1, {"cut": "b"}, "two") == ({"cut": "a"}, "one")
    assert store.keep_decision(KEY, 2, {"cut": "c"}, "two") == ({"cut": "c"}, "two")
    store.keep_decision(KEY, 4, {"cut": "d"}, "two")
    assert [store.decision(KEY, number) for number in range(5)] == [
        None,
        ({"cut": "a"}, "one"),
        ({"cut": "c"}, "two"),
        None,
        ({"cut": "d"}, "two"),
    ]
    assert store.decision(OTHER, 1) is None


def test_many_decisions_cost_one_request_each(folder_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PhaseStore.open(folder_uri)
    for number in range(1, 21):
        store.keep_decision(KEY, number, {"number": number}, "one")
    asked: list[str] = []
    for method in ("get", "exists", "size", "sizes", "list"):
        original = getattr(LocalStore, method)
        monkeypatch.setattr(
            LocalStore,
            method,
            lambda self, *args, original=original: (asked.append(str(args)), original(self, *args))[1],
        )
    assert [store.decision(KEY, number) is None for number in range(1, 22)] == [False] * 20 + [True]
    assert len(asked) == 21, "one each, also for the one that is missing"


def test_reading_a_decision_from_a_bucket_asks_for_nothing_else(s3_server: FaultProxy) -> None:
    store = PhaseStore.open(s3_server.store_uri)
    store.keep_decision(KEY, 1, {"cut": "a"}, "one")
    s3_server.requests.clear()
    assert [store.decision(KEY, number) is None for number in (1, 2)] == [False, True]
    names = [request.split()[0] + request.rpartition("/")[2] for request in s3_server.requests]
    assert names == ["HEAD000001.json", "GET000001.json", "HEAD000002.json"], "Arrow's read is a HEAD and a GET"


def test_claimed_gives_the_right_to_compute_and_then_the_result(uri: str, tmp_path: Path) -> None:
    store = PhaseStore.open(uri, pace=QUICK)
    with store.claimed(KEY, title="search", producer="one") as stored:
        assert stored is None
        kept = keep(store, tmp_path)
    with store.claimed(KEY, title="search", producer="two") as stored:
        assert stored == kept


def test_a_phase_that_was_stored_by_a_killed_holder_is_not_computed_again(folder_uri: str, tmp_path: Path) -> None:
    """It stored its result and died before it could say so: nobody waits out the lease."""
    store = PhaseStore.open(folder_uri)
    LocalStore(Path(folder_uri)).put(f"phases/{KEY}/claims/000001", b"token dead")
    kept = keep(store, tmp_path)
    with store.claimed(KEY, title="search", producer="two") as stored:
        assert stored == kept


def test_a_failed_computation_is_taken_up_by_the_next(folder_uri: str) -> None:
    store = PhaseStore.open(folder_uri)
    with pytest.raises(ZeroDivisionError), store.claimed(KEY, title="search", producer="one"):
        raise ZeroDivisionError
    with store.claimed(KEY, title="search", producer="two") as stored:
        assert stored is None


def test_waiting_for_another_run_can_be_stopped(folder_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    store = PhaseStore.open(folder_uri)
    LocalStore(Path(folder_uri)).put(f"phases/{KEY}/claims/000001", b"token run-17")
    num_checks = 0

    def check() -> None:
        nonlocal num_checks
        num_checks += 1
        if num_checks > 4:
            raise Stopped("enough")

    with pytest.raises(Stopped), store.claimed(KEY, title="search", producer="two", check=check):
        raise AssertionError("not its turn")
    assert "waiting for the run that computes the phase 'search': 'run-17'" in caplog.text


PROGRAM = """
import json, os, random, sys, time
from pathlib import Path
from ekgsearch.pipeline.phase_record import PhaseRecord
from ekgsearch.pipeline.phase_store import PhaseStore
from ekgsearch.storage.claims import Pace

uri, name, folder, log, keys, pace, seed = json.loads(sys.argv[1])
random.seed(seed)
folder = Path(folder)
folder.mkdir(parents=True, exist_ok=True)
log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(word, key):
    os.write(log, f"{word} {key} {os.getpid()}\\n".encode())

store = PhaseStore.open(uri, pace=Pace(**pace))
random.shuffle(keys)
for key in keys:
    with store.claimed(key, title=key, producer=name) as stored:
        if stored is None:
            note("start", key)
            time.sleep(random.uniform(0.2, 1.0))
            (folder / f"{key}.bin").write_bytes(os.urandom(1000))  # no two computations agree
            stored = store.keep(key, PhaseRecord(producer=name, fields={}, inputs={}), [f"{key}.bin"], folder)
            note("end", key)
    store.fetch(stored, folder)
(folder / "done").write_text("done")
"""

NUM_PROCESSES = 6
FEWEST_KILLS, MOST_KILLS = 4, 8
"""Moments are random, so a phase may be done before its holder is hit."""


class Processes:
    """Six processes that need the same phases; killed ones are started again."""

    def __init__(self, uri: str, root: Path, keys: list[str], pace: dict[str, float], seed: int) -> None:
        self.uri, self.root, self.keys, self.pace = uri, root, keys, pace
        self.random = random.Random(seed)
        self.log = root / "log"
        self.log.touch()
        self.kills: Counter[str] = Counter()
        self.running = [self.start(index) for index in range(NUM_PROCESSES)]

    def folder(self, index: int) -> Path:
        return self.root / f"run-{index}"

    def start(self, index: int) -> "subprocess.Popen[str]":
        name, seed = f"run-{index}", self.random.randrange(1 << 30)
        arguments = [self.uri, name, str(self.folder(index)), str(self.log), self.keys, self.pace, seed]
        command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()]

    def held_by(self, process: "subprocess.Popen[str]") -> str:
        """Phase that a process is computing; empty if none."""
        mine = [(word, key) for word, key, pid in self.lines() if int(pid) == process.pid]
        return mine[-1][1] if mine and mine[-1][0] == "start" else ""

    def kill_a_holder(self) -> bool:
        """Kill a process in the middle of a phase, if there is one: stopped first, so that nothing moves."""
        for index in self.random.sample(range(NUM_PROCESSES), NUM_PROCESSES):
            process = self.running[index]
            if process.poll() is not None or not self.held_by(process):
                continue
            process.send_signal(signal.SIGSTOP)
            key = self.held_by(process)
            if not key:
                process.send_signal(signal.SIGCONT)
                continue
            process.kill()
            process.communicate()
            self.kills[key] += 1
            self.running[index] = self.start(index)
            return True
        return False

    def kill_holders(self, num_kills: int) -> None:
        while self.kills.total() < num_kills and any(process.poll() is None for process in self.running):
            time.sleep(self.random.uniform(0, 0.5))
            self.kill_a_holder()

    def wait(self) -> None:
        for process in self.running:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def started() -> Iterator[list[Processes]]:
    processes: list[Processes] = []
    yield processes
    for one in processes:
        one.stop()


# The server of the tests (OpenStack Swift) checks If-None-Match before it writes, without a lock. Where this fails on
# S3, look first whether two processes were given the same claim: reading back makes that rare, not impossible.
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_six_processes_with_killed_holders_end_with_the_same_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, started: list[Processes], kind: str, seed: int
) -> None:
    is_s3 = kind == "s3"
    uri = request.getfixturevalue("s3_server").direct_uri if is_s3 else str(tmp_path / "store")
    pace = {"lease_seconds": 5 if is_s3 else 2, "beat_seconds": 0.4 if is_s3 else 0.2, "poll_seconds": 0.5}
    keys = [f"phase-{number}" for number in range(7)]
    processes = Processes(uri, tmp_path, keys, pace, seed)
    started.append(processes)
    processes.kill_holders(MOST_KILLS)
    processes.wait()

    assert processes.kills.total() >= FEWEST_KILLS, "the phases were done before enough holders were killed"
    starts = Counter(key for word, key, _ in processes.lines() if word == "start")
    assert set(starts) == set(keys)
    for key in keys:
        contents = {(processes.folder(index) / f"{key}.bin").read_bytes() for index in range(NUM_PROCESSES)}
        assert len(contents) == 1, f"{key} has several results"
        assert starts[key] <= 1 + processes.kills[key], f"{key} was computed too often: {starts}, {processes.kills}"
    assert all((processes.folder(index) / "done").is_file() for index in range(NUM_PROCESSES))
