"""A stop that a listener asks for takes effect within seconds, leaves nothing behind, and changes no result."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from ray import cloudpickle
from small_search import SmallSearch
from stopping import STOP_SECONDS, Stopper, require_nothing_left

from ekgsearch.data.datasets import Dataset
from ekgsearch.errors import Stopped
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.orchestration.backend import RayBackend
from ekgsearch.orchestration.session import ray_session
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.ledger import Clock
from ekgsearch.runtime.listener import Advanced, EpochEnded, Listener
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.workers.backend import Backend, InProcessBackend
from ekgsearch.workers.images import DataRequest
from ekgsearch.workers.training import TrainingSpec, TrainingTask, weights_path

pytestmark = pytest.mark.ray

EPOCHS = 3


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_session(ClusterSection(), num_cpus=2):
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallSearch:
    return SmallSearch.make(tmp_path_factory.mktemp("stopping"))


@pytest.fixture(scope="module")
def expected(small: SmallSearch, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small.undisturbed(tmp_path_factory.mktemp("undisturbed") / "journal.jsonl")


def search(small: SmallSearch, backend: Backend, path: Path, listener: Listener) -> bytes:
    with backend.team(small.workload, small.setup.search_spec, listener=listener) as team:
        return small.run(team, path)


@pytest.mark.slow
def test_a_search_in_this_process_stops_between_two_forward_passes(
    small: SmallSearch, expected: bytes, tmp_path: Path
) -> None:
    backend, counter = InProcessBackend(), Stopper()
    assert search(small, backend, tmp_path / "whole.jsonl", counter) == expected
    num_batches = len(small.setup.search_spec.batches)
    assert counter.num_asked > 10 * num_batches * 3  # more often than once per batch and question
    for part in (0.3, 0.4):
        stopper = Stopper(after_questions=int(part * counter.num_asked))
        with pytest.raises(Stopped, match="the test is over: what is committed is kept, the same command continues"):
            search(small, backend, tmp_path / "journal.jsonl", stopper)
        assert stopper.seconds < STOP_SECONDS
        assert expected.startswith((tmp_path / "journal.jsonl").read_bytes())
    assert search(small, backend, tmp_path / "journal.jsonl", Stopper()) == expected


def test_a_search_on_ray_stops_and_leaves_no_worker(
    session: None, small: SmallSearch, expected: bytes, tmp_path: Path
) -> None:
    backend = RayBackend(ClusterSection(search_workers=2, cpus_per_worker=0.25))
    path = tmp_path / "journal.jsonl"

    class AfterAnIteration(Stopper):
        """Asks for a stop as soon as the journal holds an iteration, while the workers work on the next one."""

        def stop_reason(self) -> str:
            if path.exists() and path.read_bytes().count(b"\n") > 1:
                self.ask()
            return super().stop_reason()

    stopper = AfterAnIteration()
    with pytest.raises(Stopped):
        search(small, backend, path, stopper)
    assert stopper.seconds < STOP_SECONDS
    require_nothing_left()
    assert 1 < path.read_bytes().count(b"\n") < expected.count(b"\n")
    starting = Stopper(after_questions=0)
    with pytest.raises(Stopped):
        search(small, backend, path, starting)
    assert starting.seconds < STOP_SECONDS
    require_nothing_left()
    assert search(small, backend, path, Stopper()) == expected


def spec_of(small: SmallSearch, data: DataRequest | None = None) -> TrainingSpec:
    """Three epochs of plain training, each followed by an evaluation."""
    config = FinetuneConfig(objective="plain", epochs=EPOCHS, batch_size=64, milestones=())
    return TrainingSpec(
        run="run",
        phase=PhaseKind.FINETUNE,
        instance="finetune-slim",
        workload=small.workload if data is None else replace(small.workload, data=data),
        tasks=(TrainingTask(name="slim", config=config, subnetwork=None, ids=None, evaluate=True),),
        bank=None,
        threads=1,
        checkpoint_every_steps=5,
    )


def train(backend: Backend, spec: TrainingSpec, folder: Path, listener: Listener, workers: int = 1) -> bytes:
    """Train, or continue; returns the bytes of the trained weights."""
    backend.train(spec, folder=folder, workers=workers, clock=Clock(), listener=listener)
    return weights_path(folder, "slim").read_bytes()


def epochs_of(*stoppers: Stopper) -> list[int]:
    events = [event for stopper in stoppers for event in stopper.events]
    return [event.epoch for event in events if isinstance(event, EpochEnded)]


def require_whole_progress(stopper: Stopper) -> None:
    """See that every image was told of once, epochs and end at their places."""
    advanced = [event for event in stopper.events if isinstance(event, Advanced)]
    assert {event.label for event in advanced} == {"finetune slim (plain)"}
    assert [event.is_end for event in advanced] == [False] * (len(advanced) - 1) + [True]
    done, at_epochs = 0, []
    for event in stopper.events:
        if isinstance(event, Advanced):
            done += event.done
        elif isinstance(event, EpochEnded):
            assert event.metrics["test_top1"] >= 0
            at_epochs.append(done)
    total = advanced[0].total
    assert at_epochs == [total * epoch // EPOCHS for epoch in range(1, EPOCHS + 1)]
    assert done == total


def test_a_training_in_this_process_stops_between_two_steps(small: SmallSearch, tmp_path: Path) -> None:
    backend, spec, whole = InProcessBackend(), spec_of(small), Stopper()
    expected = train(backend, spec, tmp_path / "whole", whole)
    require_whole_progress(whole)
    assert epochs_of(whole) == [1, 2, 3]
    parts = []
    for ask in (
        Stopper(after_questions=int(0.2 * whole.num_asked)),
        Stopper(lambda event: isinstance(event, EpochEnded) and event.epoch == 2),
    ):
        with pytest.raises(Stopped):
            train(backend, spec, tmp_path / "stopped", ask)
        assert ask.seconds < STOP_SECONDS
        assert ask.events[-1].is_end
        parts.append(ask)
    parts.append(Stopper())
    assert train(backend, spec, tmp_path / "stopped", parts[-1]) == expected
    assert epochs_of(*parts) == [1, 2, 3]


@dataclass(frozen=True, kw_only=True)
class SleepyData(DataRequest):
    """Images that take a minute to open, in which a process looks for no stop."""

    opening: Path

    def open(self) -> Dataset:
        self.opening.write_text("opening")
        time.sleep(60)
        return DataRequest.open(self)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_on_ray_stops_and_leaves_no_process(session: None, small: SmallSearch, tmp_path: Path) -> None:
    backend, spec = RayBackend(ClusterSection(cpus_per_worker=0.5)), spec_of(small)
    whole = Stopper()
    expected = train(backend, spec, tmp_path / "whole", whole, workers=2)
    require_whole_progress(whole)
    assert epochs_of(whole) == [1, 2, 3]
    require_nothing_left()
    folder = tmp_path / "stopped"

    opening = tmp_path / "opening.txt"
    sleepy = spec_of(
        small,
        SleepyData(
            small.workload.data.selection,
            small.workload.data.loading,
            opening=opening,
        ),
    )

    class WhileOpening(Stopper):
        """Asks for a stop once a process does not look for one."""

        def stop_reason(self) -> str:
            if opening.exists():
                self.ask()
            return super().stop_reason()

    parts = [
        (spec, Stopper(after_questions=2)),  # the processes are not there yet
        (sleepy, WhileOpening()),
        (spec, Stopper(lambda event: isinstance(event, Advanced) and event.done > 0)),
        (spec, Stopper(lambda event: isinstance(event, EpochEnded) and event.epoch == 2)),
    ]
    seconds: list[float] = []
    for given, stopper in parts:
        with pytest.raises(Stopped):
            train(backend, given, folder, stopper, workers=2)
        seconds.append(stopper.seconds)
        require_nothing_left()
        assert not (folder / "stop.txt").exists()
    print("stopped after", *(f"{number:.2f}" for number in seconds), "s")
    assert max(seconds) < STOP_SECONDS
    last = Stopper()
    assert train(backend, spec, folder, last, workers=2) == expected
    assert epochs_of(*(stopper for _, stopper in parts), last) == [1, 2, 3]
    require_nothing_left()
