import threading
import time
from pathlib import Path

from ekgsearch.errors import DataError
from ekgsearch.runtime.listener import (
    EpochEnded,
    IterationMade,
    Listener,
    PhaseBegun,
    PhaseCommitted,
    stop_where_asked,
)
from ekgsearch.sweep.course import Course, Step, as_result, as_step
from ekgsearch.sweep.timeline import Timeline, spans


def _epoch(number: int, network: str = "slim") -> EpochEnded:
    metrics = {"loss": 1.0, "test_top1": 90.0 + number}
    return EpochEnded(phase=f"finetune-{network}", network=network, epoch=number, metrics=metrics)


def _iteration(number: int) -> IterationMade:
    return IterationMade(phase="search", iteration=number, group="g", loss=1.0, macs=10, params=5, reduction=0.1)


def test_steps_come_in_order_with_their_progress() -> None:
    def run(listener: Listener) -> None:
        listener.hear(PhaseBegun(phase="search", key="k"))
        for number in (1, 3):
            listener.hear(_iteration(number))
        listener.hear(PhaseCommitted(phase="search", key="k", producer="other"))
        listener.hear(_epoch(1))
        listener.hear(_epoch(2))
        listener.hear(_epoch(1, "plain"))

    course, steps = Course(run), []
    while not steps or not steps[-1].is_end:
        steps.append(course.next(timeout=10))
    assert [step.event for step in steps if step] == [
        "begun",
        "iteration",
        "iteration",
        "committed",
        "epoch",
        "epoch",
        "epoch",
        "finished",
    ]
    assert [step.progress for step in steps] == [0, 0.5, 0.75, 0.75, 1, 2, 2, 2]
    assert [step.accuracy for step in steps] == [None] * 4 + [91.0, 92.0, None, None]
    assert steps[3].producer == "other"
    assert all(as_step(as_result(step)) == step for step in steps)


def test_nothing_is_computed_beyond_an_epoch_before_the_next_step_is_asked_for() -> None:
    reached = []

    def run(listener: Listener) -> None:
        for number in range(1, 4):
            reached.append(number)
            listener.hear(_epoch(number))
            stop_where_asked(listener)

    course = Course(run)
    step = course.next(timeout=10)
    assert step is not None
    assert step.progress == 1
    time.sleep(0.2)
    assert reached == [1]
    reason = f"stopped by the scheduler after {step.words}"
    assert course.stop(reason, patience=10)
    assert reached == [1]
    last = course.next(timeout=10)
    assert last is not None
    assert last.event == "stopped"
    assert last.words == "stopped by the scheduler after epoch 1 of finetune-slim"


def test_errors_end_a_course_with_their_words() -> None:
    def fails(listener: Listener) -> None:
        raise DataError("expected images, found none", "and no labels")

    def breaks(listener: Listener) -> None:
        raise ZeroDivisionError("division by zero")

    for run, words in ((fails, "expected images, found none; and no labels"), (breaks, "ZeroDivisionError: division")):
        step = Course(run).next(timeout=10)
        assert step is not None
        assert step.event == "failed"
        assert words in step.words


def test_a_run_that_does_not_end_is_told() -> None:
    go = threading.Event()
    course = Course(lambda listener: go.wait(20))
    assert not course.stop("stopped by the sweep", patience=0.1)
    go.set()


def test_the_timeline_becomes_spans(tmp_path: Path) -> None:
    first = Timeline(tmp_path)
    now = time.time()
    first.add("a", Step(event="begun", phase="search", seconds=now + 1))
    first.add("a", Step(event="iteration", phase="search", seconds=now + 2))
    first.add("a", Step(event="committed", phase="search", producer="b", seconds=now + 3))
    first.add("a", Step(event="begun", phase="finetune-slim", seconds=now + 3))
    first.add("c", Step(event="begun", phase="search", seconds=now + 4))
    first.end("a", "stopped", seconds=now + 6)
    with (tmp_path / "timeline.jsonl").open("a") as file:
        file.write('{"run": "c", "eve\n')
    Timeline(tmp_path).add("c", Step(event="begun", phase="search"))
    found = {(row.run, row.phase, row.call): row for row in spans("sweep", tmp_path)}
    assert found["a", "search", 1].producer == "b"
    assert found["a", "finetune-slim", 1].end == "stopped"
    assert round(found["a", "finetune-slim", 1].end_seconds - found["a", "finetune-slim", 1].start_seconds) == 3
    assert found["c", "search", 1].end == "interrupted"
    assert found["c", "search", 2].end == "interrupted"
