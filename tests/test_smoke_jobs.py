"""Every file in `jobs/` by `--smoke`, from the command line to its end."""

import os
import re
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from command_line import command, environment

from ekgsearch.jobfile import load_fields
from ekgsearch.storage.journal import read_journal

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "jobs").glob("*.yaml"))


def smoke(path: Path, folder: Path, settled: dict[str, str]) -> str:
    """Run one file; returns what it was told to say."""
    kind = next((name for name in ("bench", "study", "tune") if name in load_fields(path).values), "run")
    output = folder / ("rows.parquet" if kind == "bench" else path.stem)
    settings = [f"output={output}"]
    settings += ["cluster.threads=1"] if kind != "bench" else []  # two wait for each other on a busy machine
    done = subprocess.run(
        command(kind, path, "--smoke", *(word for setting in settings for word in ("--set", setting))),
        env=settled,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{path.name}: {done.stderr[-3000:]}"
    assert not output.exists(), f"{path.name} has touched the place of the real output"
    match kind:
        case "bench" if "skipped, since it needs" not in done.stdout:
            assert set(pd.read_parquet(folder / "rows.smoke.parquet").bench) == {load_fields(path).values["bench"]}
        case "study":
            assert len(pd.read_parquet(folder / f"{path.stem}.smoke" / "tables" / "study.parquet")) == 3
        case "run":
            lines = read_journal(folder / f"{path.stem}.smoke" / "journal.jsonl")
            assert lines[-1]["kind"] == "done"
            made = [line for line in lines if line["kind"] == "iteration"]
            assert max(len(line["candidates"]) for line in made) <= 3
            assert len(made) == 2 + len(load_fields(path).values.get("bank", {}).get("betas", ()))
            assert (folder / f"{path.stem}.smoke" / "report.html").is_file()
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.ray  # one benchmark is about Ray
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("with_data", [False, True], ids=["without data", "with data"])
def test_every_job_file_runs_in_small(with_data: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Without and with the data."""
    settled = {name: value for name, value in environment().items() if name not in ("EKGSEARCH_DATA", "IMAGENET")}
    if with_data:
        settled["EKGSEARCH_DATA"] = str(request.getfixturevalue("data_dir"))
    else:
        settled["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    before = sorted(os.listdir(ROOT / "results"))
    begin = time.monotonic()
    for path in FILES:
        start = time.monotonic()
        told = smoke(path, tmp_path, settled)
        print(f"{path.name}: {time.monotonic() - start:.0f} s")
        needs_data = re.search(r"EKGSEARCH_DATA|IMAGENET|name: cifar10$|^job: ekg", path.read_text(), re.MULTILINE)
        if needs_data and not with_data and "skipped" not in told:
            assert re.search(r"smoke: .*take (their|its) place", told), path.name
    print(f"all: {time.monotonic() - begin:.0f} s")
    assert sorted(os.listdir(ROOT / "results")) == before
