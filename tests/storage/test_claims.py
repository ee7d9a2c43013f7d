"""Claims: a model test of the real code under a fake clock, and a few words and errors with the real one."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ekgsearch.errors import Stopped, StorageError
from ekgsearch.storage.claims import Pace, Work, claimed, read_if_there
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.objects import ObjectStore

PACE = Pace(poll_seconds=5)
MAX_WORK_SECONDS = 100.0
MAX_LATENCY_SECONDS = 1.0
"""One way; a beat takes two of them, which leaves the holder several beats per lease."""

RESULT = "result"


class Killed(BaseException):
    """What unwinds the threads of a killed process; they do nothing more."""


class WorkFailed(Exception):  # noqa: N818 (no error of the model)
    """What a holder ends by that could not do the work."""


@dataclass(eq=False)
class Process:
    """A process of the model."""

    name: str
    is_killed: bool = False
    paused_until: float = 0.0
    outcome: bytes | None = None


@dataclass(eq=False)
class Actor:
    """A thread of a process; exactly one of all actors runs at a time."""

    process: Process
    wake_at: float
    event: threading.Event | None = None
    may_run: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_over: bool = False


class World:
    """Fake time: actors run one after the other in the order of their waking, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.time = 0.0
        self.actors: list[Actor] = []
        self.objects: dict[str, bytes] = {}
        self.history: dict[int, list[float]] = {}  # times of a claim's creation and of its beats
        self.ended: set[int] = set()
        self.results: list[bytes] = []
        self.errors: list[BaseException] = []
        self.faulty_until = 0.0
        self.starts = self.kills_of_holders = self.pauses = self.failures = self.hiccups = 0
        self.holders: set[Process] = set()
        self.current: Actor | None = None
        self.returned = threading.Semaphore(0)

    def start(self, process: Process, action: Callable[[], None], at: float) -> None:
        actor = Actor(process, at)

        def run() -> None:
            actor.may_run.acquire()
            try:
                if not process.is_killed:
                    action()
            except Killed:
                pass
            except BaseException as error:
                self.errors.append(error)
            actor.is_over = True
            self.returned.release()

        threading.Thread(target=run, daemon=True).start()
        self.actors.append(actor)

    def sleep(self, seconds: float, event: threading.Event | None = None) -> None:
        """Let the others run; called by the actor that runs."""
        actor = self.current
        assert actor is not None
        actor.wake_at, actor.event = self.time + seconds, event
        self.returned.release()
        actor.may_run.acquire()
        if actor.process.is_killed:
            raise Killed

    def next_time(self, actor: Actor) -> float:
        if actor.process.is_killed:
            return self.time
        at = self.time if actor.event is not None and actor.event.is_set() else actor.wake_at
        return max(at, actor.process.paused_until)

    def run(self, until: float) -> None:
        """Run what is to happen before a time."""
        while self.actors:
            times = [self.next_time(actor) for actor in self.actors]
            first = min(times)
            if first > until:
                break
            actor = self.actors[self.random.choice([index for index, at in enumerate(times) if at == first])]
            self.time = max(self.time, first)
            self.current, actor.event = actor, None
            actor.may_run.release()
            self.returned.acquire()
            if actor.is_over:
                self.actors.remove(actor)
            if self.errors:
                raise self.errors[0]
        self.time = max(self.time, until) if until != float("inf") else self.time


class FakeClock:
    """The world's time as one process sees it."""

    def __init__(self, world: World, process: Process, offset: float) -> None:
        self.world, self.process, self.offset = world, process, offset

    def now(self) -> float:
        return self.world.time + self.offset

    def wait(self, event: threading.Event, seconds: float) -> None:
        if not event.is_set():
            self.world.sleep(seconds, event)

    def start(self, action: Callable[[], None]) -> None:
        self.world.start(self.process, action, self.world.time)


class ModelStore:
    """The three methods that claims use; what is asked for takes effect at one moment, between two waits."""

    def __init__(self, world: World, process: Process, hiccup_rate: float) -> None:
        self.world, self.process, self.hiccup_rate = world, process, hiccup_rate

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """A way there, after which it is done or refused, and a way back, on which the answer may be lost."""
        world = self.world
        is_failing = world.time < world.faulty_until and world.random.random() < self.hiccup_rate
        is_done_first = world.random.random() < 0.5
        world.hiccups += is_failing
        world.sleep(world.random.uniform(0, MAX_LATENCY_SECONDS))
        if is_failing and not is_done_first:
            raise StorageError("refused for a moment")
        yield
        world.sleep(world.random.uniform(0, MAX_LATENCY_SECONDS))
        if is_failing:
            raise StorageError("the answer is lost")

    def get(self, key: str) -> bytes:
        with self.request():
            data = self.world.objects.get(key)
        if data is None:
            raise StorageError(f"{key} is missing") from FileNotFoundError()
        return data

    def put(self, key: str, data: bytes) -> None:
        with self.request():
            self.world.objects[key] = data
            number = int(key.rpartition("/")[2])
            self.world.history[number].append(self.world.time)
            if data.endswith(b"\nended"):
                self.world.ended.add(number)

    def create(self, key: str, data: bytes) -> bool:
        with self.request():
            is_first = key not in self.world.objects
            if is_first:
                self.world.objects[key] = data
                (self.world.results.append(data) if key == RESULT else self.note_claim(key))
        return is_first or self.world.objects[key] == data

    def note_claim(self, key: str) -> None:
        """A claim is replaced only if it ended, or if a whole lease has passed between two signs of life."""
        number, history = int(key.rpartition("/")[2]), self.world.history
        history[number] = [self.world.time]
        if number > 1 and number - 1 not in self.world.ended:
            times = [*history[number - 1], self.world.time]
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert max(gaps) >= PACE.lease_seconds, f"claim {number - 1} was replaced although its holder beats"


def patiently(action: Callable[[], bytes | bool], world: World) -> bytes | bool:
    while True:
        try:
            return action()
        except StorageError:
            world.sleep(0.5)


def live(world: World, process: Process, hiccup_rate: float, failure_rate: float) -> None:
    """What a process of the model does: the work if it is its to do, and read the result."""
    store: ObjectStore = ModelStore(world, process, hiccup_rate)  # type: ignore[assignment]
    clock = FakeClock(world, process, world.random.uniform(-1e6, 1e6))  # clocks of different machines do not agree
    checks = [world.time]

    def check() -> None:
        assert world.time - checks[-1] <= 1.0 or process.paused_until > checks[-1], "a second without a check"
        checks.append(world.time)

    work = Work(store=store, prefix="p/", title="a phase", is_done=lambda: read_if_there(store, RESULT) is not None)
    while process.outcome is None:
        checks[:] = [world.time]
        try:
            with claimed(work, process.name, check=check, pace=PACE, clock=clock) as is_mine:
                if is_mine:
                    world.starts += 1
                    world.holders.add(process)
                    world.sleep(world.random.uniform(0, MAX_WORK_SECONDS))
                    if world.time < world.faulty_until and world.random.random() < failure_rate:
                        world.failures += 1
                        raise WorkFailed
                    data = f"{process.name} {world.starts}".encode()
                    patiently(functools.partial(store.create, RESULT, data), world)
                process.outcome = bytes(patiently(lambda: store.get(RESULT), world))
        except (WorkFailed, StorageError):
            world.sleep(world.random.uniform(0, 10))
        finally:
            world.holders.discard(process)


def simulate(
    seed: int, *, kills: bool = True, pauses: bool = True, hiccups: bool = True, failures: bool = True
) -> World:
    """One random schedule: faults until some time, then none, and everybody has to end soon."""
    world = World(seed)
    draw = world.random
    hiccup_rate = draw.choice([0, 0.05, 0.3, 0.7]) if hiccups else 0.0
    failure_rate = draw.choice([0, 0.3, 0.7]) if failures else 0.0
    world.faulty_until = draw.uniform(0, 400)
    processes: list[Process] = []

    def add(at: float) -> None:
        process = Process(f"run {len(processes)}")
        processes.append(process)
        world.start(process, lambda: live(world, process, hiccup_rate, failure_rate), at)

    for _ in range(draw.randint(2, 6)):
        add(draw.choice([0.0, draw.uniform(0, 60)]))
    faults = sorted(draw.uniform(0, world.faulty_until) for _ in range(draw.randint(0, 12)))
    for at in faults:
        world.run(at)
        running = [one for one in processes if not one.is_killed and one.outcome is None]
        held = [one for one in running if one in world.holders]
        if not running:
            continue
        victim = draw.choice(held or running)
        if kills and draw.random() < 0.5:
            world.kills_of_holders += victim in held
            victim.is_killed = True
            add(at + draw.uniform(0, 60))
        elif pauses:
            world.pauses += 1
            victim.paused_until = at + draw.uniform(0, 3 * PACE.lease_seconds)
    world.run(world.faulty_until)
    last = max([world.faulty_until, *(one.paused_until for one in processes), *(one.wake_at for one in world.actors)])
    slack = 40 * MAX_LATENCY_SECONDS + 15  # requests on the way, pauses after a failure, beats
    world.run(last + PACE.lease_seconds + 3 * PACE.poll_seconds + MAX_WORK_SECONDS + slack)
    survivors = [one for one in processes if not one.is_killed]
    waiting = [one.name for one in survivors if one.outcome is None]
    assert not waiting, f"seed {seed}: {waiting} still wait"
    assert len(world.results) == 1, f"seed {seed}: {world.results} won"
    assert {one.outcome for one in survivors} <= set(world.results), f"seed {seed}: another result was read"
    for one in processes:  # end the threads that are left
        one.is_killed = True
    world.run(float("inf"))
    return world


SEEDS = [range(30), pytest.param(range(30, 1000), marks=pytest.mark.slow)]


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Leave thousands of warnings about injected faults out of the log."""
    caplog.set_level(logging.CRITICAL, "ekgsearch")


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("seeds", SEEDS)
def test_one_result_wins_and_everybody_gets_it_in_any_schedule(seeds: range) -> None:
    worlds = [simulate(seed) for seed in seeds]
    for what in ("kills_of_holders", "pauses", "failures", "hiccups"):
        assert sum(getattr(world, what) for world in worlds) >= len(seeds) / 10, f"too few {what}"


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("seeds", SEEDS)
def test_work_is_done_once_and_again_only_for_a_killed_or_failed_holder(seeds: range) -> None:
    for seed in seeds:
        world = simulate(seed, pauses=False, hiccups=False)
        assert world.starts <= 1 + world.kills_of_holders + world.failures, f"seed {seed}"


@pytest.mark.usefixtures("_quiet")
def test_the_model_repeats_itself() -> None:
    first, second = simulate(7), simulate(7)
    assert (first.time, first.starts, list(first.objects)) == (second.time, second.starts, list(second.objects))


@pytest.mark.usefixtures("_quiet")
def test_a_schedule_with_a_replaced_holder_that_goes_on_is_among_them() -> None:
    """A paused holder is replaced, wakes up, and both finish: the first result stays."""
    worlds = [simulate(seed, kills=False, hiccups=False, failures=False) for seed in range(20)]
    assert any(world.starts > 1 for world in worlds)


QUICK = Pace(lease_seconds=0.6, beat_seconds=0.1, poll_seconds=0.05)


class Piece:
    """A piece of work in a folder, done when a file is there."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder)
        self.work = Work(store=self.store, prefix="p/", title="the phase 'search'", is_done=self.is_done)

    def is_done(self) -> bool:
        return self.store.exists(RESULT)


@pytest.fixture
def piece(tmp_path: Path) -> Piece:
    return Piece(tmp_path / "store")


def test_the_first_holds_and_a_done_piece_is_not_done_again(piece: Piece) -> None:
    with claimed(piece.work, "a", pace=QUICK) as is_mine:
        assert is_mine
        piece.store.put(RESULT, b"1")
    with claimed(piece.work, "b", pace=QUICK) as is_mine:
        assert not is_mine
    assert piece.store.list("p/claims/") == ["p/claims/000001"]
    assert piece.store.get("p/claims/000001").endswith(b" a")
    assert piece.store.get("p/beats/000001").endswith(b"\nended")


def test_a_holder_that_fails_frees_its_claim_at_once(piece: Piece) -> None:
    long = Pace(lease_seconds=600, beat_seconds=100, poll_seconds=0.05)
    with pytest.raises(WorkFailed), claimed(piece.work, "a", pace=long):
        raise WorkFailed
    started = time.monotonic()
    with claimed(piece.work, "b", pace=long) as is_mine:
        assert is_mine
    assert time.monotonic() - started < 60


def test_a_dead_holder_is_replaced_and_both_lines_are_logged_once(
    piece: Piece, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    piece.store.put("p/claims/000001", b"token dead run")
    started = time.monotonic()
    with claimed(piece.work, "b", pace=QUICK) as is_mine:
        assert is_mine
    assert time.monotonic() - started >= QUICK.lease_seconds
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("claims")]
    assert lines == [
        "waiting for the run that computes the phase 'search': 'dead run'",
        "the phase 'search': the run 'dead run' has shown no sign of life for 1 s; this run takes its place",
    ]


def test_a_live_holder_is_waited_for(piece: Piece) -> None:
    slow = Pace(lease_seconds=5, beat_seconds=0.1, poll_seconds=0.05)
    has_claim = threading.Event()

    def hold() -> None:
        with claimed(piece.work, "a", pace=slow):
            has_claim.set()
            time.sleep(0.5)
            piece.store.put(RESULT, b"1")

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_claim.wait(30)
    with claimed(piece.work, "b", pace=slow) as is_mine:
        assert not is_mine
    thread.join()


@pytest.mark.parametrize("hangs", [False, True])
def test_waiting_ends_when_the_check_says_so(piece: Piece, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    piece.store.put("p/claims/000001", b"token other")
    release = threading.Event()
    if hangs:
        monkeypatch.setattr(piece.store, "get", lambda key: release.wait(60))
    end = time.monotonic() + 0.3

    def check() -> None:
        if time.monotonic() > end:
            raise Stopped("enough")

    with pytest.raises(Stopped), claimed(piece.work, "b", pace=Pace(), check=check):
        raise AssertionError("not its turn")
    assert time.monotonic() - end < 20
    release.set()


def test_a_store_that_fails_while_beating_does_not_end_the_work(
    piece: Piece, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: str, data: bytes) -> None:
        raise StorageError("down")

    with claimed(piece.work, "a", pace=QUICK) as is_mine:
        monkeypatch.setattr(piece.store, "put", fail)
        time.sleep(0.4)
        monkeypatch.undo()
        piece.store.put(RESULT, b"1")
    assert is_mine
    assert "no sign of life could be written" in caplog.text
    assert piece.store.get("p/beats/000001").endswith(b"\nended")


def test_a_store_that_fails_for_a_lease_is_an_error_of_the_waiter(
    piece: Piece, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(key: str) -> bytes:
        raise StorageError("down")

    monkeypatch.setattr(piece.store, "get", fail)
    with pytest.raises(StorageError, match="down"), claimed(piece.work, "a", pace=QUICK):
        raise AssertionError("not its turn")


def test_an_own_claim_whose_answer_was_lost_is_known_again(piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    create = piece.store.create

    def lose(key: str, data: bytes) -> bool:
        create(key, data)
        monkeypatch.undo()
        raise StorageError("the answer is lost")

    monkeypatch.setattr(piece.store, "create", lose)
    with claimed(piece.work, "a", pace=Pace(lease_seconds=600, beat_seconds=100, poll_seconds=0.05)) as is_mine:
        assert is_mine
    assert piece.store.list("p/claims/") == ["p/claims/000001"]


def test_a_claim_that_another_has_overwritten_is_not_held(piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers look first and write then, and tell two writers of the same moment that they have won."""

    def be_overwritten(key: str, data: bytes) -> bool:
        monkeypatch.undo()
        piece.store.put(key, b"token other")
        piece.store.put(RESULT, b"1")
        return True

    monkeypatch.setattr(piece.store, "create", be_overwritten)
    with claimed(piece.work, "a", pace=QUICK) as is_mine:
        assert not is_mine
    assert piece.store.list("p/beats/") == []


def test_a_lease_shorter_than_two_beats_is_refused() -> None:
    with pytest.raises(ValueError, match="two beats"):
        Pace(lease_seconds=5, beat_seconds=3)


def test_work_that_was_done_while_the_claim_was_taken_is_not_done_again(piece: Piece) -> None:
    """A holder that had been given up stores its result between the last look and the claim."""
    work = dataclasses.replace(piece.work, is_done=lambda: piece.store.exists("p/claims/000001"))
    with claimed(work, "a", pace=QUICK) as is_mine:
        assert not is_mine
        assert piece.store.get("p/beats/000001").endswith(b"\nended"), "others need not wait while this one copies"


def test_a_holder_has_a_whole_lease_after_the_store_has_failed(
    piece: Piece, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It could not beat either while nobody could read."""
    piece.store.put("p/claims/000001", b"token other")
    get, started = piece.store.get, time.monotonic()
    failures: list[float] = []

    def fail_for_a_while(key: str) -> bytes:
        if QUICK.lease_seconds / 3 < time.monotonic() - started < QUICK.lease_seconds:
            failures.append(time.monotonic())
            raise StorageError("down")
        return get(key)

    monkeypatch.setattr(piece.store, "get", fail_for_a_while)
    with claimed(piece.work, "b", pace=QUICK) as is_mine:
        taken = time.monotonic()
    assert is_mine
    assert failures
    assert taken - failures[-1] >= QUICK.lease_seconds
    assert caplog.text.count("cannot look for the run") == 1, "one line for one outage"


def test_failures_with_a_success_in_between_do_not_add_up(piece: Piece) -> None:
    piece.store.put("p/claims/000001", b"token other")
    started, failures = time.monotonic(), []

    def is_done() -> bool:
        elapsed = time.monotonic() - started
        piece.store.put("p/beats/000001", f"{elapsed}".encode())
        if len(failures) < 2 and elapsed >= 2 * QUICK.lease_seconds * len(failures):
            failures.append(elapsed)
            raise StorageError("down for a moment")
        return len(failures) == 2

    with claimed(dataclasses.replace(piece.work, is_done=is_done), "b", pace=QUICK) as is_mine:
        assert not is_mine


def test_a_process_that_comes_back_goes_on_at_once_with_what_it_had_claimed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    work = Work(store=store, prefix="work/", title="work", is_done=lambda: store.exists(RESULT))
    store.create(work.claim_key(1), b"0123:run-a first")  # by a process that was killed before its first beat
    start = time.monotonic()
    with claimed(work, "first", owner="run-a", pace=Pace()) as is_mine:
        assert is_mine
    assert time.monotonic() - start < 5, "a lease lasts 30 s"
    assert store.get(work.claim_key(2)).partition(b":")[2] == b"run-a first"
    quick = Pace(lease_seconds=1.0, beat_seconds=0.2, poll_seconds=0.1)
    for owner in ("run-b", ""):
        other = Work(store=store, prefix=f"other{owner}/", title="work", is_done=lambda: False)
        store.create(other.claim_key(1), b"0123:run-a first")
        start = time.monotonic()
        with claimed(other, "second", owner=owner, pace=quick) as is_mine:
            assert is_mine
        assert time.monotonic() - start >= 1.0, "another run's claim is free after a lease only"
