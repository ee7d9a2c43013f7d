"""Environment of a run: versions, processor, devices and commit, for the table next to its results."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "ekgsearch",
    "torch",
    "torchvision",
    "ray",
    "nvidia-dali-cuda130",
    "lightly",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "pillow",
)


def provenance() -> dict[str, Any]:
    """Describe the machine and the software of this process in JSON values, without names of hosts or users.

    Returns:
        ``python``, ``platform``, ``packages`` (version by name, None where not installed), ``cpu``, ``cores`` (that
        this process may use), ``memory_bytes``, ``gpus`` (names), ``cuda`` and ``commit`` (None outside a git checkout;
        ends with ``-changed`` where tracked files differ).
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def device_name(device: torch.device) -> str:
    """Kind of a device as the tables write it.

    Args:
        device: device that does the work.

    Returns:
        ``cpu``, or the name of the GPU such as ``NVIDIA H200``.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_threads() -> int:
    """Threads to compute with where nobody has said how many: $OMP_NUM_THREADS, else one per core."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list names nested levels
    return int(first) if first.isdecimal() and int(first) else num_cores()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Name of the processor, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Git commit of the source tree that this package was imported from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        has_changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-changed" if has_changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
