"""Events that pass through files: each once and in order, whatever is interrupted and done again."""

import json
from pathlib import Path

import pytest
from stopping import Stopper

from ekgsearch.orchestration import events
from ekgsearch.orchestration.events import EventReader, FileListener
from ekgsearch.runtime.listener import Advanced, EpochEnded


def step(done: int, is_end: bool = False, **shown: str) -> Advanced:
    return Advanced(label="finetune slim", done=done, total=100, unit="images", shown=shown, is_end=is_end)


def epoch(number: int, network: str = "slim") -> EpochEnded:
    return EpochEnded(phase="finetune", network=network, epoch=number, metrics={"loss": 0.1 * number})


def test_steps_that_follow_closely_become_one_and_keep_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ADVANCED_SECONDS", 60)
    driver = Stopper()
    reader = EventReader(tmp_path, driver, {})
    reader.begin()
    process = FileListener(tmp_path, reader.attempt)
    for event in (step(0), step(10), step(20, loss="0.5"), epoch(1), step(30), step(5, loss="0.4"), step(0, True)):
        process.hear(event)
    reader.pass_on()
    assert driver.events == [step(0), step(30, loss="0.5"), epoch(1), step(35, is_end=True, loss="0.4")]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    driver = Stopper()
    reader = EventReader(tmp_path, driver, {})
    reader.begin()
    FileListener(tmp_path, reader.attempt).hear(epoch(1))
    path = tmp_path / "events-1.jsonl"
    line = path.read_bytes()
    path.write_bytes(line + line.replace(b'"epoch": 1', b'"epoch": 2')[:20])
    reader.pass_on()
    assert driver.events == [epoch(1)]
    path.write_bytes(line + line.replace(b'"epoch": 1', b'"epoch": 2'))
    reader.pass_on()
    assert [event.epoch for event in driver.events] == [1, 2]


def test_an_attempt_after_a_lost_one_neither_repeats_nor_loses_an_epoch(tmp_path: Path) -> None:
    driver = Stopper()
    reader = EventReader(tmp_path, driver, {"slim": 2})  # kept before this driver began
    reader.begin()
    first = FileListener(tmp_path, reader.attempt)
    for event in (epoch(1), epoch(2), step(0), step(40), epoch(3)):
        first.hear(event)  # it keeps epoch 4 as well, and dies before it tells
    reader.end()
    assert driver.events[-1] == step(0, is_end=True), "what it left open has ended"
    reader.begin()
    second = FileListener(tmp_path, reader.attempt)
    for event in (epoch(1), epoch(2), epoch(3), epoch(4), step(0), epoch(5), epoch(1, "plain"), step(0, True)):
        second.hear(event)
    first.hear(epoch(9))  # an orphan that still speaks
    reader.end()
    told = [(event.network, event.epoch) for event in driver.events if isinstance(event, EpochEnded)]
    assert told == [("slim", 3), ("slim", 4), ("slim", 5), ("plain", 1)]


def test_a_stop_reaches_a_process_and_not_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STOP_SECONDS", 0)
    reader = EventReader(tmp_path, Stopper(), {})
    reader.begin()
    process = FileListener(tmp_path, reader.attempt)
    assert process.stop_reason() == ""
    reader.ask_to_stop("Ctrl-C")
    assert process.stop_reason() == "Ctrl-C"
    reader.begin()
    assert FileListener(tmp_path, reader.attempt).stop_reason() == ""


def test_what_an_earlier_driver_left_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "events-1.jsonl").write_text(json.dumps({"event": "EpochEnded"}) + "\n")
    (tmp_path / "stop.txt").write_text("earlier")
    reader = EventReader(tmp_path, driver := Stopper(), {})
    reader.begin()
    reader.pass_on()
    assert driver.events == []
    assert FileListener(tmp_path, reader.attempt).stop_reason() == ""
