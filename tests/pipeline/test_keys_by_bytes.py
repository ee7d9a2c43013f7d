"""Keys against bytes: whole runs on the digits in which one field is another.

A phase whose key stays leaves equal files; of the first phase whose key changes the files differ. Ten fields, twelve
runs of a few seconds.
"""

from pathlib import Path

import pytest
from command_line import JOB

from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.run import run_job
from ekgsearch.storage.journal import read_journal
from ekgsearch.workers.backend import InProcessBackend

SMALL = (
    "search.images_per_class=8",
    "search.batch_size=80",
    "search.reduction=0.12",
    "finetune.epochs=1",
    "pretrain.epochs=1",
    "finetune.baselines=[plain]",
    "cluster.threads=1",
)

FIRST_CHANGED = {
    "seed=2": "pretrain",
    "pretrain.learning_rate=0.06": "pretrain",
    "pretrain.flip=true": "pretrain",
    "warmup.learning_rate=0.01": "warmup",
    "search.step=0.2": "search",
    "search.reduction=0.2": "search",
    "bank.dtype=float32": "bank",
    "finetune.learning_rate=0.03": "finetune-slim",
    "finetune.temperature=2.0": "finetune-slim",
    "finetune.checkpoint_every_steps=5": None,
}

Phases = dict[str, tuple[str, dict[str, object]]]


def ran(folder: Path, *settings: str) -> Phases:
    """Key of every phase of a run, and what its journal line says it has left."""
    folder.mkdir()
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    given = dict(setting.split("=", 1) for setting in (*SMALL, *settings))
    job = load_job(folder / "job.yaml", [f"{name}={value}" for name, value in given.items()])
    job.run_dir.mkdir()
    run_job(job, InProcessBackend())
    lines = read_journal(job.run_dir / "journal.jsonl")
    keys = {line["phase"]: line["key"] for line in lines if line["kind"] == "begin"}
    left = {line["phase"]: line for line in lines if "phase" in line and line["kind"] != "begin"}
    chain = ("seq", "prev", "hash")
    return {
        phase: (keys[phase], {name: value for name, value in line.items() if name not in chain})
        for phase, line in left.items()
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Phases:
    return ran(tmp_path_factory.mktemp("base") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "first"), FIRST_CHANGED.items())
def test_equal_keys_give_equal_files_and_other_keys_others(
    setting: str, first: str | None, base: Phases, tmp_path: Path
) -> None:
    found = ran(tmp_path / "run", setting)
    assert found.keys() == base.keys()
    changed = [phase for phase in base if found[phase][0] != base[phase][0]]
    assert (changed[0] if changed else None) == first
    for phase in base:
        if phase not in changed:
            assert found[phase][1] == base[phase][1], phase
    if first is not None:
        assert found[first][1] != base[first][1]
