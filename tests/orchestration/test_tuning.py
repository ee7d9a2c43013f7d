"""Sweeps on Ray Tune: early stops, failures, kills, and that nothing is left behind or done twice."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import ray
from command_line import RunCommand, command, environment
from nodes import cluster_of
from ray._private.state import actors as actor_table
from ray.util import placement_group_table

from ekgsearch.jobfile import load_job
from ekgsearch.orchestration.session import ray_session
from ekgsearch.orchestration.sweeping import prepare_tune
from ekgsearch.runtime.ledger import LEDGER, read_ledger
from ekgsearch.storage.journal import read_journal
from ekgsearch.sweep.course import Step, as_result
from ekgsearch.sweep.job import SweepJob, load_sweep
from ekgsearch.sweep.proposals import proposer_of
from ekgsearch.sweep.record import opened
from ekgsearch.sweep.results import spent_hours
from ekgsearch.sweep.watch import Watch

pytestmark = pytest.mark.ray

SWEEP = """\
output: sweep
net: {name: resnet20}
data: {name: digits, image_size: 8, train_images: 400, test_images: 200}
pretrain: {epochs: 4, batch_size: 40, learning_rate: 0.05, milestones: [0.5], pad: 1, flip: false}
warmup: {epochs: 0}
search: {method: l1, reduction: 0.3}
finetune: {objective: plain, epochs: 3, batch_size: 40, pad: 1, flip: false}
cluster: {threads: 1}
"""

ASHA = """\
tune:
  space: {finetune.learning_rate: [0.02, 1.0e-9, 1.0e+30, 0.03]}
  scheduler: asha
  factor: 2
  concurrent: 1
"""

MANY = """\
tune:
  space:
    search.reduction: [0.4, 0.3, 0.2]
    finetune.seed: [1, 2]
  concurrent: 2
"""


@pytest.fixture
def write_sweep(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP + ASHA)
    return path


def _trials(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / "trials.parquet").sort_values("number")


def test_a_sweep_stops_fails_and_finishes_trials_and_does_nothing_twice(
    write_sweep: Path, ekgsearch: RunCommand
) -> None:
    folder = write_sweep.parent / "sweep"
    finished = ekgsearch("tune", write_sweep)
    assert finished.returncode == 0, finished.stderr
    table = _trials(folder)
    assert table.state.tolist() == ["finished", "stopped", "failed", "finished"]
    assert table.reason.tolist()[1] == "stopped by the scheduler after epoch 1 of finetune-slim"
    assert "loss" in table.reason.tolist()[2]
    stopped, failed = (folder / "trials" / name for name in table.run.tolist()[1:3])
    assert (stopped / "stopped.txt").read_text() == table.reason.tolist()[1]
    assert "stopped by the scheduler after epoch 1 of finetune-slim" in (stopped / "log.txt").read_text()
    assert {row.exit_state for row in read_ledger(stopped / LEDGER)} == {"interrupted", "shared"}
    assert "failed" in {row.exit_state for row in read_ledger(failed / LEDGER)}
    assert (table.latency_ms > 0).tolist() == [True, False, False, True]
    assert table.saved_hours.iloc[0] == 0
    assert (table.saved_hours.iloc[1:] > 0).all()
    assert "failed: " in finished.stderr
    assert "on the Pareto front" in finished.stdout
    assert (folder / "best.yaml").is_file()
    assert load_job(folder / "best.yaml").finetune.learning_rate in (0.02, 0.03)
    assert not (folder / "scratch").exists()

    nothing = ekgsearch("tune", write_sweep, "--set", "tune.budget.device_hours=1.0e-9")
    assert nothing.returncode == 75
    assert "raise it to go on" in nothing.stderr

    before = spent_hours([folder / "trials" / name for name in table.run[table.state != "failed"]])
    again = ekgsearch("tune", write_sweep)
    assert again.returncode == 0, again.stderr
    assert spent_hours([folder / "trials" / name for name in table.run[table.state != "failed"]]) == before
    assert _trials(folder).state.tolist() == ["finished", "stopped", "failed", "finished"]


def _ancestors(process: int) -> list[int]:
    """The process, its parent, and so on: other sweeps may run on this machine."""
    found = [process]
    with contextlib.suppress(OSError):
        while found[-1] > 1:
            stat = Path(f"/proc/{found[-1]}/stat").read_text()
            found.append(int(stat.rpartition(")")[2].split()[1]))
    return found


def _leftovers() -> tuple[list[str], list[str]]:
    names = [one["ActorClassName"] for one in actor_table().values() if one["State"] != "DEAD"]
    living = [name for name in names if name != "_AutoscalingCoordinatorActor"]  # one of Ray Train, for the session
    workers = subprocess.run(
        ["pgrep", "-f", "ray::(TrialRunner|SearchWorker|RayTrainWorker|TrainController|_measure)"],
        capture_output=True,
        text=True,
        check=False,
    )
    living += [f"process {line}" for line in workers.stdout.split() if os.getpid() in _ancestors(int(line))]
    groups = [one["state"] for one in placement_group_table().values() if one["state"] != "REMOVED"]
    return living, groups


def test_a_record_that_cannot_be_written_ends_the_sweep(write_sweep: Path) -> None:
    from ekgsearch.orchestration.tuning import _Proposals

    sweep = load_sweep(write_sweep)
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        watch = Watch(record, 4)
        proposals = _Proposals(record, watch)
        assert proposals.suggest("first")["job"]
        (sweep.folder / "journal.jsonl").unlink()
        step = Step(event="epoch", phase="finetune-slim", progress=1.0, accuracy=50.0)
        proposals.on_trial_result("first", as_result(step))
        assert "journal" in str(proposals.error)
        assert "cannot be recorded" in watch.end_reason
        assert proposals.suggest("second") == "FINISHED"
        proposals.close()


def _run_here(sweep: SweepJob) -> tuple[list[str], list[str], float]:
    """Run the trials of a sweep in a session of its own; what is left when they have ended, and the free cores."""
    prepare_tune()
    trials = sweep.known_trials()
    assert trials is not None
    with (
        opened(sweep, proposer_of(sweep, sweep.known_trials())) as record,
        ray_session(trials[0].job.cluster, num_cpus=2),
    ):
        from ekgsearch.orchestration.tuning import tune_trials

        tune_trials(record, Watch(record, len(trials)))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (any(_leftovers()) or ray.available_resources().get("CPU") != 2):
            time.sleep(0.1)
        return *_leftovers(), ray.available_resources()["CPU"]


@pytest.mark.slow
def test_a_trial_that_is_stopped_within_ray_train_leaves_nothing(write_sweep: Path) -> None:
    """Two search workers and two training processes per trial, two trials at a time on two cores."""
    workers = "  space: {finetune.learning_rate: [0.02, 0.03, 0.7, 0.8]}\n  scheduler: asha\n  factor: 2\n"
    write_sweep.write_text(
        SWEEP.replace("method: l1, reduction: 0.3", "method: ekg, reduction: 0.2, images_per_class: 6, batch_size: 30")
        + f"tune:\n{workers}  concurrent: 2\n"
    )
    sweep = load_sweep(write_sweep, ["cluster.search_workers=2", "finetune.workers=2", "finetune.epochs=4"])
    assert _run_here(sweep) == ([], [], 2.0)
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        states = [entry.state for entry in record.entries.values()]
    assert set(states) == {"finished", "stopped"}, "asha lets the first one go on, and stops one of the others"


def _is_ended_at_random(process: subprocess.Popen[bytes], draw: random.Random) -> bool:
    """Kill the driver or the process of a trial after a random time; whether the sweep had not ended by then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(4, 16))
    if process.poll() is not None:
        return False
    trials = subprocess.run(["pgrep", "-f", "ray::TrialRunner"], capture_output=True, text=True, check=False)
    found = [int(line) for line in trials.stdout.split() if process.pid in _ancestors(int(line))]
    if found and draw.random() < 0.4:
        os.kill(draw.choice(found), signal.SIGKILL)
        process.wait(240)
        return True
    process.kill()
    process.wait(60)
    time.sleep(4)  # Ray's processes notice that their driver has gone
    return True


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_change_nothing(write_sweep: Path, ekgsearch: RunCommand, tmp_path: Path) -> None:
    """Drivers and processes of trials are killed; each sweep that ends is compared with one that was left alone."""
    write_sweep.write_text(SWEEP + MANY)

    def arguments(name: str) -> tuple[object, ...]:
        return "tune", write_sweep, "--set", f"output={tmp_path / name}"

    whole = ekgsearch(*arguments("whole"), timeout=600)
    assert whole.returncode == 0, whole.stderr
    draw, kills, number = random.Random(1), 0, 0
    while kills < 20:
        name = f"killed-{number}"
        process = subprocess.Popen(command(*arguments(name)), env=environment(), stderr=subprocess.DEVNULL)
        if _is_ended_at_random(process, draw):
            kills += 1
            continue
        number += 1
        _check_killed(tmp_path / name, tmp_path / "whole")
        folder = tmp_path / name
        before = spent_hours((folder / "trials").iterdir())
        assert ekgsearch(*arguments(name)).returncode == 0
        assert spent_hours((folder / "trials").iterdir()) == before
    last = ekgsearch(*arguments(f"killed-{number}"), timeout=600)
    assert last.returncode == 0, last.stderr
    _check_killed(tmp_path / f"killed-{number}", tmp_path / "whole")


def _check_killed(folder: Path, whole: Path) -> None:
    """The sweep has the trials of one that was left alone, with the same journals, each finished once."""
    table, expected = _trials(folder), _trials(whole)
    assert table.run.tolist() == expected.run.tolist()
    assert set(table.state) == {"finished"}
    for name in table.run:
        journals = [(root / "trials" / name / "journal.jsonl").read_bytes() for root in (folder, whole)]
        assert journals[0] == journals[1]
    ends = [line for line in read_journal(folder / "journal.jsonl") if line["kind"] == "end"]
    finished = [line["name"] for line in ends if line["state"] == "finished"]
    assert sorted(finished) == sorted(table.run), "a finished trial is not run again"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_spread_over_nodes_and_outlive_the_loss_of_one_and_then_of_all(
    write_sweep: Path, ekgsearch: RunCommand
) -> None:
    write_sweep.write_text(SWEEP + MANY.replace("concurrent: 2", "concurrent: 3"))
    folder = write_sweep.parent / "sweep"

    def wait_for(num_trials: int) -> None:
        deadline = time.monotonic() + 240
        journals = folder / "trials"
        while time.monotonic() < deadline and len(list(journals.glob("*/journal.jsonl"))) < num_trials:
            time.sleep(0.1)

    with cluster_of(1, 1, 1) as (cluster, nodes):
        process = subprocess.Popen(
            command("tune", write_sweep, "--address", cluster.address), env=environment(), stderr=subprocess.PIPE
        )
        wait_for(2)
        cluster.remove_node(nodes[1], allow_graceful=False)
        wait_for(4)
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.remove_node(nodes[2], allow_graceful=False)
        cluster.shutdown()
        _, told = process.communicate(timeout=300)
    assert process.returncode != 0, told.decode()
    assert b"Traceback" not in told, told.decode()
    final = ekgsearch("tune", write_sweep, timeout=600)
    assert final.returncode == 0, final.stderr
    assert set(_trials(folder).state) == {"finished"}
