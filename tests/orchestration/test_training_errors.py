"""An error that a training process raises on purpose stops the run at once; any other one is charged and repeated."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import ray.train
from ray import cloudpickle
from small_search import SmallSearch

from ekgsearch.data.datasets import Dataset
from ekgsearch.errors import DataError, WorkerError
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.orchestration.session import ray_session
from ekgsearch.orchestration.training import fit
from ekgsearch.pipeline.training import TrainingPlan, TrainingTask
from ekgsearch.pipeline.workload import DataRequest
from ekgsearch.records import Phase
from ekgsearch.runtime.ledger import Clock
from ekgsearch.sections import ClusterSection

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


def train(folder: Path, ranks: tuple[int, ...], error: Exception) -> Clock:
    """Train in two processes with one restart."""
    small, clock = SmallSearch.make(folder), Clock()
    data = FaultyData(**asdict(small.workload.data), folder=folder, ranks=ranks, error=error)
    config = FinetuneConfig(objective="plain", epochs=1, batch_size=64, milestones=())
    plan = TrainingPlan(
        run="run",
        phase=Phase.FINETUNE,
        workload=replace(small.workload, data=data),
        tasks=(TrainingTask(name="slim", config=config, subnetwork=None, ids=None, evaluate=False),),
        bank=None,
        threads=1,
    )
    (folder / "training").mkdir()
    cluster = ClusterSection(max_restarts=1, cpus_per_worker=0.5)
    with pytest.raises(type(error) if isinstance(error, DataError) else WorkerError, match=str(error)):
        fit(plan, folder=folder / "training", workers=2, cluster=cluster, clock=clock)
    return clock


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
