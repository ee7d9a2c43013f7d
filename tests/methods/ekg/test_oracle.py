"""Decisions that the program published with the paper made on ResNet-56 and CIFAR-10, repeated one by one."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import command, environment

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.subset import split_search_subset
from ekgsearch.errors import DataError
from ekgsearch.methods.base import Decision
from ekgsearch.methods.ekg.replay.agreement import compare_candidates, compare_outcome
from ekgsearch.methods.ekg.replay.oracle import Oracle
from ekgsearch.methods.ekg.replay.replay import ROUNDING_DRAWS, Replay
from ekgsearch.pipeline.replaying import iteration_text, open_replay

TAMPERED = 2
"""Iteration that the tests alter."""

MOST_DRAWS = 4
"""Rounding draws that an iteration may need; here iteration 1 needs 2 and the others none. An error needs them all."""

BY_DEFAULT = (3,)
"""Recorded iterations that the default tests repeat; the winner of iteration 3 ties exactly with another candidate."""


def ekgsearch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def replay(data_dir: Path) -> Replay:
    return open_replay(data_dir / "oracle", None, data_dir, 0.45)


@pytest.fixture(scope="module")
def graph(replay: Replay) -> ChannelGraph:
    return replay.graph


@pytest.fixture(scope="module")
def decision(replay: Replay) -> Decision:
    record = replay.oracle.iteration(TAMPERED, replay.graph)
    return replay.decide(record, record.scores)


@pytest.fixture
def copy(data_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "oracle"
    shutil.copytree(data_dir / "oracle", folder, ignore=shutil.ignore_patterns("iter_000[3-9].npz"))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    return folder


def test_channel_groups_are_the_programs_gates_in_order(data_dir: Path, graph: ChannelGraph) -> None:
    gates = json.loads((data_dir / "oracle" / "gates.json").read_text())
    assert [group.size for group in graph.groups] == [gate["channels"] for gate in gates]
    assert [group.uses for group in graph.groups] == [gate["num_call"] for gate in gates]
    for group, gate in zip(graph.groups, gates, strict=True):
        assert group.name == gate["pt_name"]
        assert {member.layer for member in (*group.producers, *group.norms)} == set(gate["out_of"])
        assert {member.layer for member in group.consumers} == set(gate["in_of"])


def test_the_subsets_are_the_programs_in_its_order(data_dir: Path) -> None:
    recorded = json.loads((data_dir / "oracle" / "indices.json").read_text())
    search, warmup = split_search_subset(open_dataset("cifar10", data_dir).train.labels)
    assert search.tolist() == recorded["d_val"]
    assert warmup.tolist() == recorded["d_subset"]


@pytest.mark.parametrize(
    "iteration", [pytest.param(index, marks=() if index in BY_DEFAULT else pytest.mark.slow) for index in range(1, 9)]
)
def test_a_recorded_decision_is_repeated_by_our_own_scores(iteration: int, replay: Replay) -> None:
    (report,) = replay.run([iteration])
    assert report.breaks == (), iteration_text(report)
    assert report.importance <= 1e-3
    assert report.draws <= MOST_DRAWS < ROUNDING_DRAWS / 2
    assert (report.margin == 0) == (iteration in (3, 4))
    assert report.score <= 1e-6


@pytest.mark.slow
def test_recorded_decisions_are_repeated_in_a_free_run(replay: Replay) -> None:
    runs = list(replay.free_runs())
    assert [(run.first, run.last, run.broke_at, run.parted_at) for run in runs] == [(5, 8, None, None)]


def alter_line(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    lines = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    change(lines[TAMPERED - 1])
    (folder / "trace.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def alter_flag(folder: Path) -> None:
    alter_line(folder, lambda line: line["do_check"].__setitem__(4, not line["do_check"][4]))


def alter_loss(folder: Path) -> None:
    alter_line(folder, lambda line: line["candidates"][3].update(loss=line["candidates"][3]["loss"] + 2e-6))


def alter_winner(folder: Path) -> None:
    def change(line: dict[str, Any]) -> None:
        worst = max(line["candidates"], key=lambda candidate: candidate["score"])
        line["winner_gate"] = worst["gate"]

    alter_line(folder, change)


def alter_mask(folder: Path) -> None:
    path = folder / "iters" / f"iter_{TAMPERED:04d}.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    kept, removed = np.flatnonzero(arrays["mask_06"]), np.flatnonzero(~arrays["mask_06"])
    arrays["mask_06"][[kept[0], removed[0]]] = [False, True]
    np.savez(path, **arrays)


ALTERATIONS = {
    alter_flag: "the shortlist leaves out",
    alter_loss: "loss and score of",
    alter_winner: "has not the lowest recorded score",
    alter_mask: "layer1.5.conv1 keeps",
}


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_an_altered_record_does_not_agree(
    alter: Callable[[Path], None], copy: Path, graph: ChannelGraph, decision: Decision
) -> None:
    def disagreements() -> list[str]:
        record = Oracle.open(copy).iteration(TAMPERED, graph)
        return [*compare_candidates(decision, record)[2], *compare_outcome(decision, record, record.scores)]

    assert disagreements() == []
    alter(copy)
    assert any(ALTERATIONS[alter] in text for text in disagreements()), disagreements()


@pytest.mark.slow
@pytest.mark.parametrize("alter", ALTERATIONS)
def test_the_command_names_the_iteration_that_breaks(alter: Callable[[Path], None], copy: Path, data_dir: Path) -> None:
    arguments = ("replay", "--oracle", str(copy), "--data", str(data_dir))
    assert ekgsearch(*arguments, "--iteration", "2").returncode == 0
    alter(copy)
    found = ekgsearch(*arguments)
    assert found.returncode == 1, found.stderr
    assert "iteration 1: agrees" in found.stdout
    assert f"iteration {TAMPERED}: BREAKS" in found.stdout
    assert found.stdout.splitlines()[-1] == "BREAKS"


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def damage(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"{not what it was")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (remove("indices.json"), r"no file .*indices\.json: expected an object with the list `d_val`"),
        (remove("trace.jsonl"), r"no file .*trace\.jsonl: expected one JSON object"),
        (remove("resnet56_after_warmup.safetensors"), r"expected one \.safetensors file .* --weights"),
        (damage("trace.jsonl"), r"trace\.jsonl: expected one JSON object .* found damaged JSON"),
        (damage("initial.json"), r"initial\.json: expected an object with `flops`"),
        (damage("iters/iter_0001.npz"), r"iter_0001\.npz: expected numpy arrays .* damaged"),
        (lambda folder: alter_line(folder, lambda line: line.pop("do_check")), r"iteration 2: expected do_check"),
        (lambda folder: shutil.rmtree(folder / "iters"), "expected at least one iteration n"),
        (lambda folder: np.savez(folder / "iters" / "iter_0001.npz", a=1), "expected an array score_00 of shape"),
    ],
)
def test_missing_and_damaged_files_are_named(
    harm: Callable[[Path], None], expected: str, copy: Path, graph: ChannelGraph, data_dir: Path
) -> None:
    def read_all() -> None:
        oracle = open_replay(copy, None, data_dir, 0.45).oracle
        for number in oracle.iterations:
            oracle.iteration(number, graph)

    read_all()
    harm(copy)
    with pytest.raises(DataError, match=expected):
        read_all()


def test_bad_input_of_the_command_is_one_message_and_status_2(tmp_path: Path) -> None:
    for arguments in (("--oracle", str(tmp_path), "--data", str(tmp_path)), ("--oracle", str(tmp_path / "none"))):
        found = ekgsearch("replay", *arguments)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
        assert "expected" in found.stderr or "folder of the images" in found.stderr
