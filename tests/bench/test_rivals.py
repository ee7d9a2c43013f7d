"""The benchmark of the rivals cuts by every method, and finds the sub-networks of a journal."""

from pathlib import Path

import pytest
import yaml

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bench.base import run_bench
from ekgsearch.channels.graph import analyse
from ekgsearch.errors import BudgetError, JobError
from ekgsearch.methods.baselines.section import BASELINES
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import save_tensors


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    network = build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=4)
    save_tensors(tmp_path / "weights.safetensors", network.state_dict(), {})
    job = {
        "output": str(tmp_path / "run"),
        "net": {"name": "resnet20", "weights": str(tmp_path / "weights.safetensors")},
        "data": {"name": "digits", "image_size": 8, "train_images": 200, "test_images": 50},
        "search": {"reduction": 0.5, "images_per_class": 4},
        "warmup": {"images_per_class": 1},
        "finetune": {"batch_size": 32},
        "cluster": {"threads": 1, "threads_per_worker": 1},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    fields = {"bench": "rivals", "job": "job.yaml", "reductions": [0.05, 0.5], "output": "rows.parquet"}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path / "bench.yaml"


def test_every_method_is_measured_in_both_forms_and_the_first_sub_network_of_a_journal_that_is_small_enough(
    bench: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=4)
    graph = analyse(network, (3, 8, 8))
    path = bench.parent / "journal.jsonl"
    with Journal.open(path) as journal:
        journal.append("run", groups={group.name: group.size for group in graph.groups})
        for iteration, (channels, macs) in enumerate(
            ((16, 2_600_000), (15, 2_500_000), (8, 2_300_000), (4, 2_000_000))
        ):
            kept = {"conv1": list(range(channels))} if iteration else {}
            line = {"iteration": iteration, "group": "", "kept": kept, "macs": macs, "params": 1, "candidates": []}
            journal.append("iteration", **line)
    found = {(row.case, row.quantity): row.value for row in run_bench(bench, [f"journal={path}"])[1]}
    cases = {f"{method}, {groups}" for method in BASELINES for groups in ("private", "all")}
    for percent in (5, 50):
        named = {case.rpartition(", ")[0] for case, _ in found if case.endswith(f", {percent} %")}
        assert named == cases | ({"ekg, journal"} if percent == 5 else set())
        for case in cases:
            assert percent <= found[f"{case}, {percent} %", "MACs removed"] < percent + 3
            assert 0 <= found[f"{case}, {percent} %", "top-1, recalibrated"] <= 100
            assert found[f"{case}, {percent} %", "search"] > 0
    assert found["ekg, journal, 5 %", "MACs removed"] > 5
    assert any("the search ended before 50 % were removed; left out" in line for line in caplog.messages)


def test_a_share_that_private_channel_groups_cannot_give_is_refused(bench: Path) -> None:
    with pytest.raises(BudgetError, match=r"a reduction of 0.97 .* cannot be reached"):
        run_bench(bench, ["reductions=[0.97]", "methods=[l1]"])


def test_one_search_of_each_kind_serves_every_share(bench: Path) -> None:
    searches = "{single: {search_teacher: single}, preset: {preset: private_l2}}"
    settings = ["methods=[taylor]", "groups=[private]", f"searches={searches}", "reductions=[0.1, 0.05]", "aside=3"]
    found = {(row.case, row.quantity): row.value for row in run_bench(bench, settings)[1]}
    for name, groups in (("single", "all"), ("preset", "private")):
        early, late = (
            {
                what: found[f"ekg {name}, {groups}, {percent} %", what]
                for what in ("MACs removed", "search", "candidates")
            }
            for percent in (5, 10)
        )
        assert 5 <= early["MACs removed"] < 10 <= late["MACs removed"] < 15
        assert 0 < early["search"] < late["search"]
        assert 0 < early["candidates"] < late["candidates"]
    assert "taylor, private, 5 %" in {case for case, _ in found}
    measured = found["taylor, private, 5 %", "top-1, recalibrated"] * 30 / 100  # thirty images are kept aside
    assert measured == pytest.approx(round(measured))


def test_a_search_with_a_field_that_does_not_exist_is_refused(bench: Path) -> None:
    with pytest.raises(JobError, match=r"searches.mine.teacher: Extra inputs are not permitted"):
        run_bench(bench, ["searches={mine: {teacher: none}}"])
