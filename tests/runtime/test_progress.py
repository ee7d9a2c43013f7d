"""Progress and log: one line at most every five seconds, a bar on a terminal, no secrets anywhere."""

import io
import logging
import sys
import time
from pathlib import Path

import pytest

from ekgsearch.errors import StorageError
from ekgsearch.runtime.progress import Progress, configure_logging, duration

pytestmark = pytest.mark.usefixtures("_logging_as_before")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_done_total_rate_elapsed_eta_and_metrics_in_order(fake_time: list[float]) -> None:
    progress = Progress("search", 100, "candidates", logging.getLogger("ekgsearch.x"))
    fake_time[0] = 10.0
    progress.advance(20, loss=0.123456, group="layer1", device_hours=1.5)
    assert progress.line() == (
        "search  20/100 candidates  2 candidates/s  0:10  ETA 0:40  loss 0.1235  group layer1  device_hours 1.5"
    )


def test_an_unknown_total_has_no_eta(fake_time: list[float]) -> None:
    progress = Progress("index", 0, "images", logging.getLogger("ekgsearch.x"))
    fake_time[0] = 4000.0
    progress.advance(8000)
    assert progress.line() == "index  8000/? images  2 images/s  1:06:40"


def test_more_work_than_was_announced_ends_now_and_fills_the_bar(
    fake_time: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("index", 10, "images", logging.getLogger("ekgsearch.x"))
    fake_time[0] = 4.0
    progress.advance(20)
    assert terminal.getvalue() == "\r\x1b[K" + "█" * 24 + " index  20/10 images  5 images/s  0:04  ETA 0:00"


def test_a_terminal_is_drawn_at_most_ten_times_a_second(
    fake_time: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("search", 1000, "steps", logging.getLogger("ekgsearch.x"))
    for _ in range(512):
        fake_time[0] += 2**-9
        progress.advance()
    assert terminal.getvalue().count("\r") == 9


@pytest.mark.parametrize(
    ("total", "done", "shown"),
    [
        (5_101_888, 666_608, "0.667 M/5.102 M MACs  0.133 M MACs/s"),
        (999_999, 25_400, "25400/999999 MACs  5,080 MACs/s"),
        (0, 6_000_000, "6.000 M/? MACs  1.200 M MACs/s"),
    ],
)
def test_counts_and_rate_of_a_line_have_one_unit(total: int, done: int, shown: str, fake_time: list[float]) -> None:
    progress = Progress("search", total, "MACs", logging.getLogger("ekgsearch.x"))
    fake_time[0] = 5.0
    progress.advance(done)
    assert progress.line().startswith(f"search  {shown}  0:05")


def test_lines_come_at_most_every_five_seconds_and_once_at_the_end(
    fake_time: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(None)
    with Progress("search", 1000, "steps", logging.getLogger("ekgsearch.x")) as progress:
        for _ in range(1000):
            fake_time[0] += 2**-6
            progress.advance()
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "320/1000 steps",
        "640/1000 steps",
        "960/1000 steps",
        "1000/1000 steps",
    ]
    assert "ETA" not in lines[-1]


def test_a_terminal_gets_a_bar_and_the_file_gets_lines(
    fake_time: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging(tmp_path)
    with Progress("search", 10, "steps", logging.getLogger("ekgsearch.x")) as progress:
        for _ in range(10):
            fake_time[0] += 2.0
            progress.advance()
        logging.getLogger("ekgsearch.x").warning("said between")
    shown = terminal.getvalue()
    assert shown.count("█" * 12 + "░" * 12) == 1
    assert "\r\x1b[Ksaid between\n" in shown
    assert shown.endswith("\r\x1b[Ksearch  10/10 steps  0.5 steps/s  0:20\n")
    assert shown.count("\n") == 2
    assert (tmp_path / "log.txt").read_text().count("/10 steps") == 4


def test_verbose_shows_details_and_a_second_call_replaces_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("ekgsearch.x")
    configure_logging(tmp_path)
    (file,) = (handler for handler in logging.getLogger("ekgsearch").handlers if hasattr(handler, "baseFilename"))
    log.debug("hidden")
    configure_logging(tmp_path, verbose=True)
    log.debug("shown")
    assert file.stream is None, "the first log file is closed"  # type: ignore[attr-defined]
    assert "hidden" not in capsys.readouterr().err
    text = (tmp_path / "log.txt").read_text()
    assert text.count("shown") == 1
    assert "hidden" not in text


def test_lines_are_not_written_a_second_time_by_the_root_logger(caplog: pytest.LogCaptureFixture) -> None:
    configure_logging(None)
    logging.getLogger("ekgsearch.x").warning("once")
    assert caplog.text == ""


def test_secrets_of_metrics_are_not_drawn(fake_time: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fake_time[0] = 1.0
    Progress("search", 10, "steps", logging.getLogger("ekgsearch.x")).advance(bucket="s3://user:canary@bucket")
    assert "[redacted]@bucket" in terminal.getvalue()
    assert "canary" not in terminal.getvalue()


def test_secrets_are_in_neither_output_not_even_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-0123456789")
    configure_logging(tmp_path, verbose=True)
    log = logging.getLogger("ekgsearch.x")
    log.info("opening with %s", "canary-0123456789")
    try:
        raise RuntimeError("AKIACANARYCANARY0001 and password=canary-9876543210")
    except RuntimeError:
        log.exception("failed")
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert "RuntimeError" in text
        assert "canary-0" not in text
        assert "canary-9" not in text
        assert "AKIA" not in text


def test_a_full_disk_is_told_once_and_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    configure_logging(tmp_path)
    for number in range(3):
        logging.getLogger("ekgsearch.x").info("line %d", number)
    text = capsys.readouterr().err
    assert [line for line in text.splitlines() if line.startswith("line")] == ["line 0", "line 1", "line 2"]
    assert text.count("No space left on device; the log is incomplete") == 1
    assert "Traceback" not in text


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot open .*none/log\.txt"):
        configure_logging(tmp_path / "none")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (86400, "24:00:00")])
def test_durations_are_written_as_a_clock_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
