"""Commands of the documents and of cluster/ray.sh need no activated environment."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = "run|groups|validate|report|export|replay|study|bench|schema"


@pytest.mark.parametrize("name", ["README.md", "cluster/README.md"])
def test_every_command_of_a_document_names_the_environment(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.search(rf"\.venv/bin/ekgsearch (?:{COMMANDS})", text)
    assert re.findall(rf"(?<![/\w])ekgsearch\s(?:{COMMANDS})\b", text) == []


def test_every_option_of_the_script_is_in_its_document() -> None:
    options = set(re.findall(r"^ +(--[a-z]+)\)", (ROOT / "cluster" / "ray.sh").read_text(), re.MULTILINE))
    assert {"--host", "--port", "--head", "--everywhere"} <= options
    text = (ROOT / "cluster" / "README.md").read_text()
    assert [option for option in sorted(options) if option not in text] == []


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A checkout that holds the script alone."""
    (tmp_path / "cluster").mkdir()
    (tmp_path / "token").write_text("secret")
    return Path(shutil.copy(ROOT / "cluster" / "ray.sh", tmp_path / "cluster"))


def start(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "RAY_AUTH_TOKEN_PATH": str(script.parents[1] / "token")}
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, cwd="/", check=False)


def test_the_script_takes_ray_from_the_environment_next_to_it(script: Path) -> None:
    ray = script.parents[1] / ".venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.write_text("#!/bin/sh\necho $RAY_AUTH_MODE $*\n")
    ray.chmod(0o755)
    started = start(script, "head", "--port", "6380", "--", "--num-gpus", "8")
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith("token start --head --block --node-ip-address 127.0.0.1 --port 6380 ")
    assert started.stdout.endswith(" --num-gpus 8\n")


@pytest.mark.skipif(shutil.which("ray", path="/usr/bin:/bin") is not None, reason="Ray is installed for all users")
def test_the_script_says_where_it_looks_for_ray(script: Path) -> None:
    refused = start(script, "head")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "there is no ray in .venv/bin or on the PATH" in refused.stderr
