"""The Python of the README runs as it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_in_python_run_one_after_the_other(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    (tmp_path / "results").mkdir()
    environment = os.environ | {"PYTHONPATH": str(README.parent), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "channel groups" in finished.stdout
    sizes = [(tmp_path / "results" / name).stat().st_size for name in ("small.safetensors", "smaller.safetensors")]
    assert sizes[0] > sizes[1]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 2000
