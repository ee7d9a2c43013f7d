"""Fixtures of whole runs."""

import subprocess
from pathlib import Path

import pytest
from command_line import JOB, RunCommand, command, environment


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job file whose run directory lies beside it."""
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(output=tmp_path / "run"))
    return path


@pytest.fixture(scope="session")
def ekgsearch() -> RunCommand:
    """Run the command line to its end in a process of its own."""

    def run(*arguments: str | Path, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            env=environment() | variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, ekgsearch: RunCommand) -> Path:
    """An uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    finished = ekgsearch("run", folder / "job.yaml")
    assert finished.returncode == 0, finished.stderr
    return folder / "run"
