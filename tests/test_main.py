"""Every end of a command is a message and an exit status."""

import subprocess
from pathlib import Path

import click
import pytest
from command_line import command, environment

from ekgsearch import __main__ as program
from ekgsearch.errors import DataError, JobError, StorageError


def ended_by(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a command that raises this."""

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(program, "cli", fail)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "(MemoryError)"),
        (MemoryError("  \n"), "(MemoryError)"),
        (MemoryError("Unable to allocate 8 GiB\nfor an array"), "(Unable to allocate 8 GiB)"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "not enough memory: you tried)"),
    ],
)
def test_memory_that_runs_out_is_one_message_also_without_a_text(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(error, monkeypatch) == program.EXIT_ERROR
    shown = capsys.readouterr().err
    assert shown.startswith("error: out of memory; what is in the journal is kept")
    assert shown.endswith(f"{reason}\n")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (DataError("a\x1b[2J\nb.png: <X object at 0x7f00>"), "error: a\\x1b[2J\\nb.png: <X>\n"),
        (JobError("one mistake", "another\rone"), "error: one mistake\nanother\\rone\n"),
        (StorageError(), "error: StorageError\n"),
    ],
)
def test_an_error_is_one_line_for_each_mistake(
    error: Exception, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(error, monkeypatch) == program.EXIT_ERROR
    assert capsys.readouterr().err == shown


def test_a_defect_shows_its_traceback_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(KeyError("password=S3cret\x1b"), monkeypatch) == program.EXIT_DEFECT
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert "KeyError" in shown
    assert "S3cret" not in shown
    assert "\x1b" not in shown


def test_arguments_are_repeated_in_printable_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(click.UsageError("no \r\x07.png"), monkeypatch) == 2
    assert capsys.readouterr().err == "Error: no \\r\\x07.png\n"


def test_mistakes_of_a_job_are_one_line_each_on_any_terminal(tmp_path: Path) -> None:
    path = tmp_path / "日\x1bb.yaml"
    path.write_text("output: x\nseed: x\nsearch: {reduction: 7}\n")
    finished = subprocess.run(
        command("validate", path), env=environment() | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, text=True
    )
    assert finished.returncode == program.EXIT_ERROR
    lines = finished.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert "search.reduction = 7" in lines[1]
    assert all("\\u65e5\\x1bb.yaml" in line for line in lines)
