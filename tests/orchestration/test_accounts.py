"""What the driver counts and decides about workers and training processes, without any of them."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
from ray import cloudpickle

from ekgsearch.errors import DataError
from ekgsearch.orchestration import pieces, training, workers
from ekgsearch.orchestration.member import Member
from ekgsearch.orchestration.pieces import MOST_BYTES, Pieces, pack
from ekgsearch.orchestration.placement import Request
from ekgsearch.orchestration.traffic import Traffic
from ekgsearch.orchestration.workers import RayCrew
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.workers.questions import Answer


def test_calls_are_counted_by_worker_and_iteration() -> None:
    traffic = Traffic()
    for worker, iteration in ((0, 1), (0, 1), (1, 1), (0, 2), (1, 2), (1, 2), (1, 2)):
        traffic.call(worker, iteration)
    assert [traffic.calls(iteration) for iteration in (1, 2, 3)] == [2, 3, 0]
    assert traffic.most_calls == 3


def test_no_piece_of_an_answer_is_larger_than_allowed_however_the_batches_divide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pieces.ray, "put", lambda part: part)
    values = {batch: [{"group": np.zeros(24_800)}] for batch in range(9)}  # 9 x 198 kB do not fill two halves evenly
    answer = Answer(run="run", iteration=1, question="scores", attempt=1, values=values, busy_seconds=0.0)
    packed = pack(answer)
    assert isinstance(packed, Pieces)
    assert all(len(cloudpickle.dumps(part)) <= MOST_BYTES for part in packed.references)
    assert sorted(batch for part in packed.references for batch in part.values) == list(range(9))


def crew_of(*members: Member, **cluster: Any) -> RayCrew:
    """A crew whose workers are not started."""
    crew = object.__new__(RayCrew)
    crew._cluster = ClusterSection(**cluster)
    crew._request = Request.of(crew._cluster, "cpu")
    crew._workload = crew._spec = None  # type: ignore[assignment]
    crew.traffic = Traffic()
    crew.members = list(members)
    return crew


def test_workers_that_share_a_core_hold_whole_cores_together() -> None:
    for number, cores in ((1, 1), (2, 1), (3, 2), (4, 2)):
        assert crew_of(*[Member(index, ()) for index in range(number)], cpus_per_worker=0.5).num_devices == cores


def test_the_worker_with_the_fewest_batches_takes_over_as_a_later_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[int, tuple[int, ...], int]] = []
    monkeypatch.setattr(workers.ray, "kill", lambda actor: None)
    monkeypatch.setattr(
        RayCrew, "_start", lambda _, member, __: started.append((member.index, member.owned, member.attempt))
    )
    gone = Member(1, (0, 7), attempt=4)
    crew = crew_of(Member(0, (1, 2, 3), attempt=2), gone, Member(2, (4, 5), attempt=2), Member(3, (6, 8), attempt=9))
    heir = crew._hand_over(gone, "its node is gone", ())
    assert started == [(2, (0, 4, 5, 7), 4)]  # reports of the fourth attempt at 0 and 7 are late from now on
    assert heir is crew.members[1]
    assert [member.index for member in crew.members] == [0, 2, 3]


def test_a_worker_that_was_lost_before_gets_twice_as_long_to_start_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = SimpleNamespace(open=SimpleNamespace(remote=lambda _: "opening"))
    options = SimpleNamespace(remote=lambda *_: actor)
    monkeypatch.setattr(workers, "SearchWorker", SimpleNamespace(options=lambda **_: options))
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    crew = crew_of(start_timeout_seconds=30)
    for losses, patience in ((0, 30), (1, 60), (3, 240)):
        member = Member(0, (), losses=losses)
        crew._start(member, ())
        assert member.deadline == 1000 + patience
        assert (member.attempt, member.opening) == (1, "opening")


class Failed(ray.train.TrainingFailedError):
    """What Ray Train raises where a process failed."""

    def __init__(self, cause: Exception | None = None) -> None:
        super().__init__("it has\n  failed\n")
        self.worker_failures = {0: SimpleNamespace(cause=cause)} if cause else {}


def fit_with(attempts: list[Exception | None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is charged where each attempt leaves two records of work and ends so."""

    def attempt(*_: object) -> None:
        number = len(attempts)
        (folder / "busy-0.txt").write_text(f"{number}.0")
        (folder / "busy-1.txt").write_text(f"{number}.5")
        error = attempts.pop(0)
        if error is not None:
            raise error

    charged: list[float] = []
    monkeypatch.setattr(training, "_trainer", lambda *_: None)
    monkeypatch.setattr(training, "_fit_interruptibly", attempt)
    spec: Any = SimpleNamespace(tasks=[SimpleNamespace(name="slim")], devices_per_worker=4)
    clock: Any = SimpleNamespace(busy=charged.append)
    try:
        training.fit(spec, folder=folder, workers=2, cluster=ClusterSection(max_restarts=2), clock=clock)
    finally:
        assert not list(folder.glob("busy-*"))
    return sorted(charged)


def test_the_work_of_every_attempt_is_charged_once_and_for_all_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit_with([Failed(), Failed(), None], tmp_path, monkeypatch) == [4, 6, 8, 10, 12, 14]
    assert "starting others (2): it has failed" in caplog.text


def test_an_error_on_purpose_of_a_process_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Exception | None] = [Failed(ValueError("chance")), Failed(DataError("damaged")), None]
    with pytest.raises(DataError, match="damaged"):
        fit_with(attempts, tmp_path, monkeypatch)
    assert attempts == [None]
