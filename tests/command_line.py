"""The command line in a process of its own, and a job that takes seconds: what whole-run tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
"""Runs the command line with these arguments to its end."""


def environment() -> dict[str, str]:
    """Environment of a child process: no cluster, no authentication, little chatter."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS",)}
    return clean | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def command(*arguments: str | Path) -> list[str]:
    """The command line of ekgsearch in this Python."""
    return [sys.executable, "-m", "ekgsearch", *map(str, arguments)]
