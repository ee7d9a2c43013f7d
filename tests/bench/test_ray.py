"""The benchmark of Ray runs on a small search, on which both sides decide the same, and counts few small messages."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from command_line import JOB, command, environment


@pytest.mark.ray
@pytest.mark.slow
def test_the_messages_of_a_small_search_are_counted(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    (tmp_path / "bench.yaml").write_text(f"{{bench: ray, job: {tmp_path / 'job.yaml'}, pairs: 3, output: {rows}}}")
    finished = subprocess.run(
        command("bench", tmp_path / "bench.yaml"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = pd.read_parquet(rows).set_index("quantity")
    assert 2 <= found.value["calls per worker and iteration, most"] <= 3
    assert 0 < found.value["largest object sent"] < 1000
    assert found.repeats["processor time, Ray / plain"] == 3
