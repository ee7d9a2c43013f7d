"""Search workers on real Ray: lost ones are replaced, and nobody can tell from the journal."""

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cloudpickle
from small_search import Saboteur, SmallSearch, worker_processes

from ekgsearch.bank.commit import StoredBank, commit, missing_blocks
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.errors import WorkerError
from ekgsearch.orchestration.backend import RayBackend
from ekgsearch.orchestration.member import Member
from ekgsearch.orchestration.pieces import Pieces, pack, unpack
from ekgsearch.orchestration.session import ray_session
from ekgsearch.orchestration.workers import RayCrew
from ekgsearch.records import Subnetwork
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.storage.objects import open_store
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Answer, Question
from ekgsearch.workers.team import BankOrder, Team

pytestmark = pytest.mark.ray

KILL, HANG = signal.SIGKILL, signal.SIGSTOP

QUESTIONS = {"begin", "scores", "evaluate", "settle"}
"""What a search asks, near ties included."""


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with ray_session(ClusterSection(), num_cpus=2):
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, session: None) -> SmallSearch:
    return SmallSearch.make(tmp_path_factory.mktemp("workers"))


@pytest.fixture(scope="module")
def expected(small: SmallSearch, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small.undisturbed(tmp_path_factory.mktemp("undisturbed") / "journal.jsonl")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the questions that workers on Ray are asked."""
    names: set[str] = set()
    ask = RayCrew.ask

    def watched(crew: RayCrew, question: Question, inbox: Inbox, history: Sequence[Subnetwork]) -> None:
        names.add(question.name)
        ask(crew, question, inbox, history)

    monkeypatch.setattr(RayCrew, "ask", watched)
    return names


def sabotaged(small: SmallSearch, path: Path, workers: int, signals: list[signal.Signals], seed: int) -> list[bytes]:
    """Journals of searches, one after the other, until all signals are sent."""
    journals: list[bytes] = []
    remaining = list(signals)
    while remaining:
        options = {"max_restarts": len(signals), "timeout_seconds": 6, "start_timeout_seconds": 40}
        with small.on_ray(workers, **options) as (team, crew):
            with Saboteur(seed + len(journals), remaining, longest_wait=1.5) as saboteur:
                journals.append(small.run(team, path / f"{workers}-{seed}-{len(journals)}.jsonl"))
            remaining = remaining[: len(remaining) - len(saboteur.hit)]
            idle_hits = sum(pid in [member.process for member in crew.members] for pid in saboteur.hit)
            assert sum(member.attempt - 1 for member in crew.members) >= len(saboteur.hit) - idle_hits
            assert len(team.inbox.results()) == len(small.setup.search_spec.batches)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and worker_processes(os.getpid()):
            time.sleep(0.05)
        assert not worker_processes(os.getpid())  # nor those that hang
    return journals


@pytest.mark.slow
def test_random_kills_and_a_hang_leave_no_trace_in_the_journal(
    small: SmallSearch, expected: bytes, asked: set[str], tmp_path: Path
) -> None:
    for journal in sabotaged(small, tmp_path, workers=2, signals=[HANG, KILL, KILL, KILL], seed=3):
        assert journal == expected
    assert asked == QUESTIONS


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills", "hangs"), [(1, 5, 1), (2, 10, 2), (4, 8, 1), (8, 7, 0)])
def test_many_random_kills_leave_no_trace_in_the_journal(
    workers: int, kills: int, hangs: int, small: SmallSearch, expected: bytes, asked: set[str], tmp_path: Path
) -> None:
    signals = [KILL] * kills + [HANG] * hangs
    random.Random(workers).shuffle(signals)
    for journal in sabotaged(small, tmp_path, workers, signals, seed=100 * workers):
        assert journal == expected
    assert asked == QUESTIONS


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_journal_is_that_of_one_process_for_any_number_of_workers(
    workers: int, small: SmallSearch, expected: bytes, asked: set[str], tmp_path: Path
) -> None:
    with small.on_ray(workers) as (team, crew):
        assert len(crew.members) == workers
        assert small.run(team, tmp_path / "journal.jsonl") == expected
    assert asked == QUESTIONS


@pytest.mark.slow
def test_the_quirks_of_the_published_program_are_searched_alike_by_workers_also_when_one_is_killed(
    session: None, asked: set[str], tmp_path: Path
) -> None:
    small = SmallSearch.make(tmp_path, ["search.quirks=reference", "search.batch_size=12"])
    expected = small.undisturbed(tmp_path / "alone.jsonl")
    for journal in sabotaged(small, tmp_path, workers=2, signals=[KILL], seed=8):
        assert journal == expected
    assert asked == QUESTIONS


@pytest.mark.slow
def test_races_are_decided_alike_by_any_workers_also_when_some_are_killed(
    small: SmallSearch, expected: bytes, tmp_path: Path
) -> None:
    with InProcessBackend().team(small.workload, small.setup.search_spec) as team:
        alone = small.race(team, tmp_path / "alone.jsonl", error=0.5)
    assert alone != expected  # dropped candidates have seen fewer images
    lines = alone.splitlines(keepends=True)
    (tmp_path / "two.jsonl").write_bytes(b"".join(lines[:3]))
    with (
        small.on_ray(2, max_restarts=2, timeout_seconds=20) as (team, crew),
        Saboteur(5, [KILL, KILL], longest_wait=2),
    ):
        assert small.race(team, tmp_path / "two.jsonl", error=0.5) == alone
        assert crew.traffic.most_calls <= 8


@pytest.mark.slow
def test_a_worker_count_that_changes_on_resume_changes_nothing(
    small: SmallSearch, expected: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = expected.splitlines(keepends=True)
    for done, workers in ((4, 3), (8, 1)):
        path.write_bytes(b"".join(lines[:done]))
        with small.on_ray(workers) as (team, crew):
            assert len(crew.members) == workers
            assert small.run(team, path) == expected


def test_a_job_of_the_size_of_cifar_needs_few_small_messages(session: None, tmp_path: Path) -> None:
    """ResNet-56, 320 images in two batches; the messages know nothing of the size of the images."""
    settings = ["net.name=resnet56", "search.images_per_class=32", "search.batch_size=256", "search.reduction=0.02"]
    job = SmallSearch.make(tmp_path, settings)
    histories = [job.setup.graph.full()]
    for name, kept in histories[0].kept * 2:
        histories.append(histories[-1].replace(name, kept[: len(histories[-1][name]) // 2]))
    with job.on_ray(2) as (team, crew):
        assert job.run(team, tmp_path / "journal.jsonl").count(b"\n") >= 2
        assert 2 <= crew.traffic.most_calls <= 3
        assert crew.traffic.largest_bytes < 1e6
        crew.traffic.weigh(histories)  # what a worker that is replaced in the last iteration is sent
        assert crew.traffic.largest_bytes < 1e6


def test_a_late_report_of_a_replaced_worker_is_dropped_and_counted(
    small: SmallSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs is given up, and speaks after all, since the kill did not reach its node."""
    full = small.setup.graph.full()
    with small.on_ray(1, timeout_seconds=4) as (team, crew):
        before = team.begin([full])
        orphan, process = crew.members[0].actor, crew.members[0].process
        with monkeypatch.context() as patch:
            patch.setattr(ray, "kill", lambda actor: None)
            os.kill(process, HANG)
            scores = team.scores(full, 1)
        assert crew.members[0].attempt == 2
        os.kill(process, signal.SIGCONT)
        ray.get(orphan.open.remote(()))  # calls run in order: by now it has answered the old question
        assert team.begin([full]) == before
        assert team.inbox.num_late == len(small.setup.search_spec.batches)
        assert team.inbox.num_duplicates == 0
        again = team.scores(full, 1)
        assert all((scores[name] == again[name]).all() for name in scores)
        ray.kill(orphan)


def test_a_worker_that_dies_too_often_stops_the_run_with_advice(small: SmallSearch) -> None:
    with (
        small.on_ray(1, max_restarts=1) as (team, _),
        Saboteur(0, [KILL] * 50, longest_wait=0.1),
        pytest.raises(WorkerError, match=r"died, the 2\. time in a row; cluster.max_restarts is 1"),
    ):
        team.begin([small.setup.graph.full()])


def test_more_workers_than_batches_are_said_and_not_started(
    small: SmallSearch, caplog: pytest.LogCaptureFixture
) -> None:
    with small.on_ray(12, cpus_per_worker=0.01) as (_, crew):
        assert len(crew.members) == 10
    assert "it is searched by 10 workers" in caplog.text
    assert "search_workers = 12, but the search subset has 10 batches of at most 12 images" in caplog.text


def build_bank(small: SmallSearch, team: Team, folder: Path) -> StoredBank:
    """A bank of two teachers in 12 blocks."""
    full = small.setup.graph.full()
    name, kept = full.kept[0]
    teachers = (full, full.replace(name, kept[1:]))
    spec = BankSpec(
        dataset_hash=small.setup.dataset.train.content_hash,
        weights_hash="any",
        teachers=tuple(teacher.sha256 for teacher in teachers),
        num_images=len(small.setup.dataset.train),
        num_classes=10,
        batch_size=64,
        batches_per_block=2,
    )
    missing, built = tuple(missing_blocks(open_store(str(folder)), spec)), []
    team.build_bank(BankOrder(spec=spec, teachers=teachers, missing=missing, uri=str(folder)), built.append)
    assert sorted(block.block for block in built) == list(range(spec.num_blocks))
    assert sum(block.images for block in built) == spec.num_images
    return commit(open_store(str(folder)), spec)


@pytest.mark.slow
def test_workers_beyond_the_batches_build_the_bank_and_nothing_else(
    session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallSearch.make(tmp_path, ["search.batch_size=60"])
    expected = small.undisturbed(tmp_path / "expected.jsonl")
    with InProcessBackend().team(small.workload, small.setup.search_spec) as alone:
        manifest = build_bank(small, alone, tmp_path / "alone")
    backend = RayBackend(ClusterSection(search_workers=9, cpus_per_worker=0.5))
    done: dict[str, set[int]] = {"answer": set(), "build_block": set()}

    def watch(name: str) -> None:
        call = getattr(Member, name)

        def watched(member: Member, *arguments: object) -> object:
            done[name].add(member.index)
            return call(member, *arguments)

        monkeypatch.setattr(Member, name, watched)

    for name in done:
        watch(name)
    with backend.team(small.workload, small.setup.search_spec) as team:
        crew = team._crew
        assert small.run(team, tmp_path / "before.jsonl") == expected
        assert (len(crew.members), backend.num_search_devices) == (2, 1)
        backend.enlist(num_blocks=1)
        assert len(crew.members) == 2
        backend.enlist(num_blocks=12)
        assert (len(crew.members), backend.num_search_devices) == (4, 2)  # for more there is no place
        opening = [member.opening for member in crew.members[2:]]
        ray.wait(opening, num_returns=2, timeout=60)
        os.kill(ray.get(opening[0]).value.process, KILL)  # a worker without a batch is replaced as any other
        os.kill(crew.members[0].process, KILL)
        assert build_bank(small, team, tmp_path / "together") == manifest
        assert [member.attempt for member in crew.members] == [2, 1, 2, 1]
        assert [member.owned for member in crew.members] == [()] * 4  # who is replaced reads nothing of the search
    assert done == {"answer": {0, 1}, "build_block": {0, 1, 2, 3}}


def test_a_team_without_batches_builds_the_bank(
    small: SmallSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(small.setup.search_spec, batches=())
    with InProcessBackend().team(small.workload, spec) as alone:
        manifest = build_bank(small, alone, tmp_path / "alone")
    backend = RayBackend(ClusterSection(search_workers=2, cpus_per_worker=0.5))
    with backend.team(small.workload, spec) as team:
        crew = team._crew
        assert [member.owned for member in crew.members] == [()]
        os.kill(ray.get(crew.members[0].opening).value.process, KILL)
        assert build_bank(small, team, tmp_path / "one") == manifest
        assert [member.attempt for member in crew.members] == [2]
        crew.members[0].opening = "a call that never ends"
        monkeypatch.setattr("ekgsearch.orchestration.workers.no_room", lambda *_: "its node is gone")
        with pytest.raises(WorkerError, match=r"worker 0 found no place .*: its node is gone"):
            crew._replace(crew.members[0], TimeoutError(), ())
    assert "a batch is never split" not in caplog.text


def test_a_worker_for_the_bank_that_never_starts_is_done_without(
    small: SmallSearch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(small.setup.search_spec, batches=())
    backend = RayBackend(ClusterSection(search_workers=2, cpus_per_worker=1, max_restarts=0))
    with backend.team(small.workload, spec) as team:
        crew = team._crew
        ray.get(crew.members[0].opening)
        other = ray.remote(object).options(num_cpus=1).remote()  # another job holds the other core
        backend.enlist(num_blocks=12)
        assert len(crew.members) == 2
        crew.members[1].deadline = 0.0
        build_bank(small, team, tmp_path / "bank")
        assert [member.index for member in crew.members] == [0]
        ray.kill(other)
    assert "worker 1 did not start, the 1. time in a row; cluster.max_restarts is 0. Going on without" in caplog.text


def test_a_worker_that_joins_after_a_hand_over_has_an_index_of_its_own(small: SmallSearch) -> None:
    with small.on_ray(2, cpus_per_worker=0.5) as (_, crew):
        gone = crew.members[0]
        ray.kill(gone.actor)
        crew._hand_over(gone, "its node is gone", ())
        crew.enlist(num_blocks=12)
        assert [member.index for member in crew.members] == [1, 2]


def test_workers_that_find_no_place_are_refused_with_what_there_is(small: SmallSearch) -> None:
    with pytest.raises(WorkerError) as refused, small.on_ray(3, cpus_per_worker=1.0):
        pass
    assert "search_workers = 3 workers ask for 1 CPU each" in str(refused.value)
    assert "hold 2 of them (nodes: 2 CPU, 0 GPU)" in str(refused.value)
    assert "set cluster.search_workers=2" in str(refused.value)


def answer_of(num_batches: int) -> Answer:
    """Channel scores of ResNet-50, 11,456 channels, for each batch."""
    draw = np.random.default_rng(0)
    values = {batch: [{"conv1": draw.random(64), "rest": draw.random(11_392)}] for batch in range(num_batches)}
    return Answer(run="run", iteration=3, question="scores", attempt=2, values=values, busy_seconds=1.5)


def test_a_large_answer_travels_in_pieces_and_arrives_whole(session: None) -> None:
    answer = answer_of(31)
    assert len(cloudpickle.dumps(answer)) > 2_800_000
    sizes: list[int] = []
    packed = pack(answer)
    assert isinstance(packed, Pieces)
    found = unpack(packed, lambda part: sizes.append(len(cloudpickle.dumps(part))))
    assert max(sizes) < 1_000_000
    assert sum(sizes) > 2_800_000
    expected, keys = dict(answer.reports()), [key for key, _ in found.reports()]
    assert sorted(keys) == sorted(expected)
    for key, value in found.reports():
        assert all(np.array_equal(value[name], expected[key][name]) for name in ("conv1", "rest"))
    assert (found.busy_seconds, found.attempt) == (1.5, 2)


def test_a_small_answer_travels_as_it_is(session: None) -> None:
    answer = answer_of(3)
    sizes: list[object] = []
    assert pack(answer) is answer
    assert unpack(answer, sizes.append) is answer
    assert sizes == [answer]
