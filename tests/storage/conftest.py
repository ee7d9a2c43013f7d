"""Disks that are full or refuse, mounted where this process may mount."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a memory disk here ({error}): needs root on Linux")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=1m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that takes no change, with the file ``kept`` (b"old") on it."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount(folder, "size=1m")
    try:
        (folder / "kept").write_bytes(b"old")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True)
def _importable_in_subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs that a test starts import the package from the source tree."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
