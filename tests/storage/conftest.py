"""Disks that are full or refuse, mounted where this process may mount, and a record of what a disk is asked for."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ekgsearch.storage.files import PARTIAL_SUFFIX


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


@pytest.fixture
def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that change files or wait for the disk, in order: their names and the names of the files.

    What a power cut takes away does not show when a process is killed: the page cache outlives it. The order of the
    calls says what is on the disk.
    """
    calls: list[str] = []

    def record(name: str) -> None:
        original = getattr(os, name)

        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            path = Path(os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else args[0])
            calls.append(f"{name} {'PARTIAL' if path.name.endswith(PARTIAL_SUFFIX) else path.name}")
            return original(target, *args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fsync", "ftruncate", "replace", "link"):
        record(name)
    return calls


@pytest.fixture(autouse=True)
def _importable_in_subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs that a test starts import the package from the source tree."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
