"""A whole run that takes seconds: digits at 8 x 8 pixels, a barely trained ResNet-20, a small search."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

JOB = """\
output: {output}
net: {{name: resnet20}}
data: {{name: digits, image_size: 8}}
pretrain: {{epochs: 2, batch_size: 64, learning_rate: 0.05, milestones: [0.5], pad: 1, flip: false}}
warmup: {{images_per_class: 16}}
search: {{reduction: 0.3, step: 0.4, images_per_class: 12, batch_size: 50}}
bank: {{teachers: 3}}
finetune: {{epochs: 2, batch_size: 64, learning_rate: 0.02, milestones: [0.5], pad: 1, flip: false}}
"""

RunCommand = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job file whose run directory lies beside it."""
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(output=tmp_path / "run"))
    return path


def environment() -> dict[str, str]:
    """Environment of a child process: no cluster, no authentication, little chatter."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS",)}
    return clean | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def command(*arguments: str | Path) -> list[str]:
    """The command line of ekgsearch in this Python."""
    return [sys.executable, "-c", "from ekgsearch.cli import main; main()", *map(str, arguments)]


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
