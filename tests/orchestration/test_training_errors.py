"""An error that a training process raises on purpose stops the run at once; any other one is charged and repeated."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray import cloudpickle
from small_search import SmallSearch
from stopping import Stopper

from ekgsearch.data.datasets import Dataset
from ekgsearch.errors import DataError, WorkerError
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.orchestration import training
from ekgsearch.orchestration.checkpoints import RayCheckpoints
from ekgsearch.orchestration.session import ray_session
from ekgsearch.orchestration.training import fit
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.ledger import Clock
from ekgsearch.runtime.listener import Advanced, EpochEnded
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.workers.images import DataRequest
from ekgsearch.workers.training import TrainingSpec, TrainingTask

pytestmark = pytest.mark.ray

PAUSE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class FaultyData(DataRequest):
    """Images that some ranks cannot open; the first of their attempts takes a while."""

    folder: Path
    ranks: tuple[int, ...]
    error: Exception

    def open(self) -> Dataset:
        rank = ray.train.get_context().get_world_rank()
        log = self.folder / f"rank-{rank}.txt"
        with open(log, "a") as file:
            file.write("opened\n")
        if rank in self.ranks:
            if log.read_text() == "opened\n":
                time.sleep(PAUSE_SECONDS)
            raise self.error
        return DataRequest.open(self)


@pytest.fixture
def session() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_session(ClusterSection(), num_cpus=2):
        yield


def spec_of(small: SmallSearch, data: DataRequest) -> TrainingSpec:
    """One epoch of plain training."""
    config = FinetuneConfig(objective="plain", epochs=1, batch_size=64, milestones=())
    return TrainingSpec(
        run="run",
        phase=PhaseKind.FINETUNE,
        instance="finetune-slim",
        workload=replace(small.workload, data=data),
        tasks=(TrainingTask(name="slim", config=config, subnetwork=None, ids=None, evaluate=False),),
        bank=None,
        threads=1,
    )


def train(folder: Path, ranks: tuple[int, ...], error: Exception) -> Clock:
    """Train in two processes with one restart."""
    small, clock = SmallSearch.make(folder), Clock()
    data = FaultyData(
        small.workload.data.selection,
        small.workload.data.loading,
        folder=folder,
        ranks=ranks,
        error=error,
    )
    spec = spec_of(small, data)
    (folder / "training").mkdir()
    cluster = ClusterSection(max_restarts=1, cpus_per_worker=0.5)
    with pytest.raises(type(error) if isinstance(error, DataError) else WorkerError, match=str(error)):
        fit(spec, folder=folder / "training", workers=2, cluster=cluster, clock=clock)
    return clock


@dataclass(frozen=True, kw_only=True)
class KillsAfterACheckpoint(DataRequest):
    """Images of processes whose first one is killed as soon as its second checkpoint is saved, once."""

    folder: Path

    def open(self) -> Dataset:
        """Open the images; whoever does so is a training process."""
        save, killed, saved = RayCheckpoints.save, self.folder / "killed.txt", []

        def watched(port: RayCheckpoints, write: Callable[[Path], None] | None, metrics: Mapping[str, float]) -> None:
            save(port, write, metrics)
            saved.append(metrics)
            if write is not None and len(saved) == 2 and not killed.exists():
                killed.write_text(f"{metrics['step']:.0f}")
                os.kill(os.getpid(), signal.SIGKILL)

        RayCheckpoints.save = watched  # type: ignore[method-assign]
        return DataRequest.open(self)


@pytest.mark.slow
def test_a_process_that_is_killed_right_after_saving_goes_on_from_what_it_saved(session: None, tmp_path: Path) -> None:
    small = SmallSearch.make(tmp_path)
    data = KillsAfterACheckpoint(small.workload.data.selection, small.workload.data.loading, folder=tmp_path)
    (tmp_path / "training").mkdir()
    spec = replace(spec_of(small, data), checkpoint_every_steps=4)
    cluster = ClusterSection(max_restarts=1, cpus_per_worker=0.5)
    listener = Stopper()
    fit(spec, folder=tmp_path / "training", workers=2, cluster=cluster, clock=Clock(), listener=listener)
    assert [event.epoch for event in listener.events if isinstance(event, EpochEnded)] == [1]
    assert [event.is_end for event in listener.events if isinstance(event, Advanced)].count(True) == 2  # one lost
    assert (tmp_path / "killed.txt").read_text() == "8"
    assert "continuing after epoch 0 and 8 steps of 1 from" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "training" / "reached.txt").read_text() == "slim 1 0"


@pytest.mark.parametrize(("moves", "is_lost"), [([0, 1, 2, 3, 4], False), ([1, 1], True), ([0, 0], True)])
def test_failures_count_in_a_row_without_a_new_checkpoint(
    moves: list[int], is_lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt comes so many steps far and dies; the one after the last ends well."""
    remaining = list(moves)

    def attempt(*_: object) -> None:
        if remaining:
            step = remaining.pop(0)
            if step:
                (tmp_path / training.REACHED_FILE).write_text(f"slim 0 {step}")
            raise ray.train.TrainingFailedError("killed")

    monkeypatch.setattr(training, "_trainer", lambda *_: None)
    monkeypatch.setattr(training, "_fit_interruptibly", attempt)
    spec: Any = SimpleNamespace(tasks=[SimpleNamespace(name="slim")], devices_per_worker=1)
    cluster = ClusterSection(max_restarts=1)
    if is_lost:
        with pytest.raises(WorkerError, match="failed 2 times in a row without a new checkpoint"):
            fit(spec, folder=tmp_path, workers=2, cluster=cluster, clock=Clock())
    else:
        fit(spec, folder=tmp_path, workers=2, cluster=cluster, clock=Clock())
        assert not remaining


def attempts(folder: Path, rank: int) -> int:
    return (folder / f"rank-{rank}.txt").read_text().count("opened")


def test_an_error_on_purpose_is_not_repeated_though_the_other_process_waits(session: None, tmp_path: Path) -> None:
    start = time.monotonic()
    train(tmp_path, (1,), DataError("these images are damaged"))
    assert time.monotonic() - start < 120  # the other one would wait half an hour for its gradients
    assert attempts(tmp_path, 1) == 1
    assert attempts(tmp_path, 0) <= 1


@pytest.mark.slow
def test_another_error_is_repeated_and_the_work_of_every_attempt_is_charged(session: None, tmp_path: Path) -> None:
    clock = train(tmp_path, (0, 1), RuntimeError("something else"))
    assert attempts(tmp_path, 1) == 2
    assert clock.read()[1] > PAUSE_SECONDS
