"""`tune`, `validate` and `schema` from the command line, as far as they start no Ray."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ekgsearch.cli import cli
from ekgsearch.storage.journal import read_journal

from .conftest import SPACE, SWEEP

SMALL = (
    SWEEP.replace("data: {name: digits}", "data: {name: digits, image_size: 8}").replace("epochs: 4", "epochs: 1")
    + SPACE
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SMALL)
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_dry_run_tells_trials_shared_phases_and_the_most_that_it_costs(file: Path) -> None:
    done = invoke("tune", file, "--dry-run", "--set", "tune.budget.device_hours=2", "--set", "tune.scheduler=asha")
    assert done.exit_code == 0, done.exception
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert lines[0].startswith("8 trials (grid), each on")
    assert "pretrain 1 for 8 trials" in lines
    assert "search 4 for 8 trials" in lines  # two steps, two betas
    assert "finetune for each trial" in lines
    assert lines[-1] == "at most 8 epochs of fine-tuning over 1,437 images; ended after 2 device-hours"
    assert not (file.parent / "sweep").exists()


def test_the_smoke_form_runs_one_trial_of_each_kind(file: Path) -> None:
    done = invoke("tune", file, "--smoke", "--set", "cluster.threads=1")
    assert done.exit_code == 0, done.output
    runs = sorted(file.parent.glob("sweep_*.smoke"))
    jobs = [yaml.safe_load((run / "job.yaml").read_text()) for run in runs]
    assert sorted(job["search"]["method"] for job in jobs) == ["ekg", "epruner"]
    assert all(read_journal(run / "journal.jsonl")[-1]["kind"] == "done" for run in runs)
    assert invoke("tune", file, "--smoke", "--address", "auto").exit_code == 2


def test_validate_checks_every_trial_and_shows_the_file(file: Path) -> None:
    done = invoke("validate", file)
    assert done.output == f"{file}: valid; start it with: ekgsearch tune {file}\n"
    shown = invoke("validate", file, "--show", "--set", "tune.factor=5")
    assert yaml.safe_load(shown.output)["tune"]["factor"] == 5
    wrong = invoke("validate", file, "--set", "tune.space.search.beta.values=[0.7, 7]")
    assert wrong.exit_code == 1
    assert "search.beta = 7" in str(wrong.exception)


def test_the_schema_describes_the_section(file: Path) -> None:
    schema = json.loads(invoke("schema").output)
    assert schema["properties"]["tune"] == {"$ref": "#/$defs/TuneSection"}
    assert schema["$defs"]["TuneSection"]["properties"]["algorithm"]["enum"] == ["grid", "random", "optuna"]
    tables = json.loads(invoke("schema", "--tables").output)
    assert tables["trials"]["saved_hours"]["description"]
