"""The benchmark of the search compares every way of evaluating that a CPU offers, on a real small search."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ekgsearch.bench.base import load_bench, run_bench
from ekgsearch.bench.ceilings import convolution_bytes
from ekgsearch.bench.search import Settings, _plan, open_search
from ekgsearch.errors import JobError
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.zoo import build
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import save_tensors

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    network = build(NetSpec("resnet20", 10, (3, 8, 8)), seed=4)
    for name, parameter in network.named_parameters():
        if name.endswith("bn2.weight"):
            parameter.data.fill_(0.8)
    save_tensors(tmp_path / "weights.safetensors", network.state_dict(), {})
    fields = {
        "output": str(tmp_path / "run"),
        "net": {"name": "resnet20", "weights": str(tmp_path / "weights.safetensors")},
        "data": {"name": "digits", "image_size": 8},
        "warmup": {"images_per_class": 20},
        "search": {"reduction": 0.5, "images_per_class": 8, "batch_size": 40},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def test_every_case_is_compared_with_naive_on_the_same_iterations(job: Path, tmp_path: Path) -> None:
    cases = ["shared", "exact", "channels last", "bf16", 0, 0.9]
    bench = tmp_path / "bench.yaml"
    fields = {"bench": "search", "job": str(job), "cases": cases, "iterations": [1, 4], "pairs": 2}
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    title, measurements, output = run_bench(bench)
    assert "ABAB" in title
    rows = pd.read_parquet(output)
    assert len(rows) == len(measurements)
    for case in ["shared", "exact", "channels last", "bf16", "slice_below 0", "slice_below 0.9"]:
        ratios = rows[(rows.case == case) & rows.quantity.str.startswith("naive / ")]
        assert list(ratios.repeats) == [2, 2, 2]
        assert (ratios.value > 0).all()
    agreement = rows[rows.quantity == "decisions as naive"].set_index("case").value
    assert agreement["shared"] == agreement["exact"] == 1.0
    deviation = rows[rows.quantity == "largest relative deviation of a score"].set_index("case").value
    assert deviation["shared"] == deviation["slice_below 0"] == 0.0
    assert deviation["exact"] == deviation["slice_below 0.9"]
    assert 0.0 < deviation["exact"] < 1e-5 < deviation["bf16"]
    assert "search up to iteration 4, wall" in set(rows.quantity)


def test_racing_is_compared_on_enough_batches_and_refused_on_fewer(job: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.yaml"
    fields = {"bench": "search", "job": str(job), "cases": ["exact", "racing"], "iterations": [1, 900], "pairs": 1}
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    with pytest.raises(JobError, match=r"cases: racing needs more than 4 batches, but the search subset has 2; leave"):
        run_bench(bench)
    _, measurements, _ = run_bench(
        bench, ["overrides=[search.images_per_class=4, search.batch_size=4, search.reduction=0.03, search.racing=0.95]"]
    )
    found = {(measured.case, measured.quantity): measured.value for measured in measurements}
    assert found["exact", "decisions as naive"] == 1
    assert found["racing", "largest relative deviation of a score"] < 1e-5
    moved = "moved by convolutions, per iteration"
    assert found["racing", moved] < found["exact", moved]
    assert ("exact", "whole search, wall") in found


@pytest.mark.parametrize("path", sorted(JOBS.glob("bench_search*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_job_opens_its_network_images_and_weights(
    path: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(JOBS.parent)
    _, settings = load_bench(path)
    assert isinstance(settings, Settings)
    here = (*settings.overrides, "cluster.device=cpu", f"output={tmp_path}")
    setup, workload = open_search(settings.model_copy(update={"overrides": here}))
    opened = workload.open_network().state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in setup.network.state_dict().items())
    assert setup.net.padding == "tf_same", "as the weights need"
    plans = [_plan(setup, case) for case in settings.cases]
    assert all(plan not in plans[:index] for index, plan in enumerate(plans)), "no two cases are the same"


def test_a_job_without_weights_is_refused(job: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.yaml"
    bench.write_text(yaml.safe_dump({"bench": "search", "job": str(job), "overrides": ["net.weights=null"]}))
    with pytest.raises(JobError, match="null"):
        run_bench(bench)


@pytest.mark.parametrize(
    ("iterations", "said"),
    [
        ([], "iterations = .*: .*at least 1 item"),
        ([0], "iterations.0 = 0: must be greater than or equal to 1"),
        ([700, 800], r"iterations = \[700, 800\]: the search ended after \d+; name some"),
    ],
)
def test_iterations_that_no_search_has_are_refused(iterations: list[int], said: str, job: Path, tmp_path: Path) -> None:
    fields = {"bench": "search", "job": str(job), "overrides": ["search.reduction=0.1"], "iterations": iterations}
    bench = tmp_path / "bench.yaml"
    bench.write_text(yaml.safe_dump(fields))
    with pytest.raises(JobError, match=said):
        run_bench(bench)


def test_the_journal_of_another_network_is_refused(job: Path, tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        journal.append("run", groups={"conv1": 16, "fc": 3})
        journal.append("iteration", kept={"conv1": [0, 1]})
    bench = tmp_path / "bench.yaml"
    bench.write_text(yaml.safe_dump({"bench": "search", "job": str(job), "journal": str(tmp_path / "journal.jsonl")}))
    with pytest.raises(JobError, match="channel groups of resnet20, found those of another network with 2"):
        run_bench(bench)


def test_bytes_of_convolutions_are_their_operands_each_once() -> None:
    images, kernel = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    moved = convolution_bytes(lambda: torch.relu(torch.conv2d(images, kernel)))
    assert moved == 4 * (2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 2 * 5 * 6 * 6)
