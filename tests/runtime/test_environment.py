"""What a run ran on."""

import json
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from ekgsearch.runtime import environment
from ekgsearch.runtime.environment import device_name, num_cores, provenance


def test_provenance_is_json_with_versions_and_machine() -> None:
    found = json.loads(json.dumps(provenance()))
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["cores"] == num_cores() >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["cpu"]
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_provenance_imports_no_optional_library_and_names_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ["ray", "torchvision", "lightly", "nvidia.dali"]
    before = {name for name in hidden if name in sys.modules}
    text = json.dumps(provenance())
    assert {name for name in hidden if name in sys.modules} == before
    assert socket.gethostname() not in text


def test_packages_that_are_not_installed_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert set(provenance()["packages"].values()) == {None}


def test_the_commit_is_that_of_the_source_tree() -> None:
    commit = provenance()["commit"]
    assert commit is None or len(commit.removesuffix("-changed")) == 40


def test_changes_of_tracked_files_show_in_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "package" / "runtime" / "environment.py"))
    (tmp_path / "notes.txt").write_text("unknown to git")
    commit = git("rev-parse", "HEAD")
    assert provenance()["commit"] == commit
    (tmp_path / "package" / "__init__.py").write_text("changed = True")
    assert provenance()["commit"] == f"{commit}-changed"
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "package" / "below" / "runtime" / "environment.py"))
    assert provenance()["commit"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bind processes to cores")
def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)


def test_a_processor_is_called_cpu() -> None:
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.gpu
def test_a_gpu_is_called_by_its_name() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert device_name(torch.device("cuda")) == torch.cuda.get_device_name()
