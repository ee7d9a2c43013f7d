"""Progress that is shown from events."""

import logging

import pytest

from ekgsearch.runtime.listener import Advanced, EpochEnded, Listeners
from ekgsearch.runtime.progress_listener import ProgressListener


def advanced(label: str, done: int, is_end: bool = False, **shown: str) -> Advanced:
    return Advanced(label=label, done=done, total=100, unit="images", shown=shown, is_end=is_end)


def test_each_piece_of_work_ends_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    listener = Listeners([ProgressListener(logging.getLogger("ekgsearch.x"))])
    for event in (
        advanced("training", 0),
        advanced("training", 30),
        EpochEnded(phase="warmup", network="full", epoch=1, metrics={"loss": 1.0}),
        advanced("bank", 5),
        advanced("training", 70, loss="0.5"),
        advanced("training", 0, is_end=True),
        advanced("bank", 15, is_end=True),
        advanced("training", 10, is_end=True),
    ):
        listener.hear(event)
    lines = [" ".join(message.split("  ")[:2]) for message in caplog.messages]
    assert lines == ["training 100/100 images", "bank 20/100 images", "training 10/100 images"]
    assert caplog.messages[0].endswith("loss 0.5")
    assert listener.stop_reason() == ""
