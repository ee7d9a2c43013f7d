"""The benchmark of the search compares every way of evaluating that a CPU offers, on a real small search."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bench.base import load_bench, run_bench
from ekgsearch.bench.ceilings import convolution_bytes
from ekgsearch.bench.search import Settings, _spec, open_search, run
from ekgsearch.errors import JobError
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import save_tensors

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    network = build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=4)
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


@pytest.mark.slow
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
    noise = next(measured for measured in measurements if measured.quantity.startswith("naive / "))
    assert (noise.case, noise.quantity, noise.repeats) == ("naive", "naive / naive, iteration 1", 2)


def test_without_cases_it_only_searches_to_the_end_or_an_iteration(job: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.yaml"
    fields = {"bench": "search", "job": str(job), "overrides": ["search.reduction=0.1"], "cases": []}
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    for iterations, span in (("[900]", "whole search"), ("[1]", "search up to iteration 1")):
        quantities = [measured.quantity for measured in run_bench(bench, [f"iterations={iterations}"])[1]]
        assert quantities == ["iterations searched", "candidates evaluated", f"{span}, processor time", f"{span}, wall"]
    with pytest.raises(JobError, match=r"cases: \[\] only searches, and journal names a finished search"):
        run_bench(bench, ["journal=journal.jsonl"])


@pytest.mark.slow
def test_compiled_norms_are_compared_with_naive(job: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.yaml"
    fields = {"bench": "search", "job": str(job), "cases": ["compiled", "bf16 compiled"], "iterations": [2], "pairs": 1}
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    found = {(measured.case, measured.quantity): measured.value for measured in run_bench(bench)[1]}
    deviation = "largest relative deviation of a score"
    assert found["compiled", "decisions as naive"] == 1
    assert 0 < found["compiled", deviation] < 1e-5 < found["bf16 compiled", deviation] < 0.1


@pytest.mark.gpu
def test_every_way_runs_on_a_gpu_and_the_exact_ones_decide_as_naive(job: Path, tmp_path: Path) -> None:
    """On 20 batches of 4 images, which is enough for racing."""
    exact, approximate = ["shared", "exact", "channels last", "compiled"], ["tf32", "bf16", "bf16 compiled", "racing"]
    bench = tmp_path / "bench.yaml"
    overrides = ["cluster.device=cuda", "search.images_per_class=8", "search.batch_size=4"]
    fields = {"bench": "search", "job": str(job), "overrides": overrides, "cases": exact + approximate, "pairs": 1}
    bench.write_text(yaml.safe_dump({**fields, "iterations": [1], "output": str(tmp_path / "rows.parquet")}))
    _, measurements, _ = run_bench(bench)
    found = {(measured.case, measured.quantity): measured.value for measured in measurements}
    for case in exact + approximate:
        assert found[case, f"naive / {case}, iteration 1"] > 0
        assert found[case, "share of the bandwidth bound of its convolutions"] > 0
    for case in exact:
        assert found[case, "decisions as naive"] == 1
        assert found[case, "largest relative deviation of a score"] < 1e-4
    for case in ("tf32", "bf16", "bf16 compiled"):
        assert 0 < found[case, "largest relative deviation of a score"] < 0.2
    assert found["device", "copy, read and written"] > 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cases=[exact, tf32]", "cases: tf32: only GPUs multiply in TF32"),
        ("cases=[naive tf32]", "cases: naive tf32: only"),
        ("baseline=naive tf32", "baseline: naive tf32: only"),
    ],
)
def test_tf32_on_a_cpu_is_refused(override: str, said: str, job: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.yaml"
    fields = {"bench": "search", "job": str(job), "overrides": ["cluster.device=cpu"]}
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    with pytest.raises(JobError, match=said):
        run_bench(bench, [override])


@pytest.mark.slow
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
    others = [text for text in settings.overrides if not text.startswith(("cluster.device=", "output="))]
    here = (*others, "cluster.device=cpu", f"output={tmp_path}")
    offered = tuple(case for case in settings.cases if case != "tf32")
    setup, workload = open_search(settings.model_copy(update={"overrides": here, "cases": offered}), tmp_path)
    opened = workload.open_network().state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in setup.network.state_dict().items())
    assert setup.recipe.identity()["arguments"]["padding"] == "tf_same", "as the weights need"
    plans = [_spec(setup, case) for case in settings.cases]
    assert all(plan not in plans[:index] for index, plan in enumerate(plans)), "no two cases are the same"


def test_a_job_without_weights_is_searched_from_the_same_random_ones(job: Path, tmp_path: Path) -> None:
    overrides = ("net.weights=null", "search.reduction=0.1")
    settings = Settings(bench="search", job=str(job), overrides=overrides, cases=("exact",), iterations=(1,), pairs=1)
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drawn.append(open_search(settings, tmp_path / name)[1].open_network().state_dict())
    assert all(torch.equal(drawn[1][name], tensor) for name, tensor in drawn[0].items())
    assert drawn[0]["layer1.0.bn2.weight"].abs().min() > 0, "residual branches are open"
    agreement = next(found for found in run(settings) if found.quantity == "decisions as naive")
    assert agreement.value == 1


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
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    with pytest.raises(JobError, match=said):
        run_bench(bench)


def test_the_journal_of_another_network_is_refused(job: Path, tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        journal.append("run", groups={"conv1": 16, "fc": 3})
        journal.append("iteration", kept={"conv1": [0, 1]})
    bench = tmp_path / "bench.yaml"
    fields = {"bench": "search", "job": str(job), "journal": str(tmp_path / "journal.jsonl")}
    bench.write_text(yaml.safe_dump({**fields, "output": str(tmp_path / "rows.parquet")}))
    with pytest.raises(JobError, match="channel groups of resnet20, found those of another network with 2"):
        run_bench(bench)


def test_bytes_of_convolutions_are_their_operands_each_once() -> None:
    images, kernel = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    moved = convolution_bytes(lambda: torch.relu(torch.conv2d(images, kernel)))
    assert moved == 4 * (2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 2 * 5 * 6 * 6)


def test_bytes_of_convolutions_backward_are_those_of_the_gradients_that_are_taken() -> None:
    images, kernel = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(5, 3, 3, 3)
    loss = torch.conv2d(images, kernel).sum()
    moved = convolution_bytes(lambda: torch.autograd.backward(loss))
    assert moved == 4 * (2 * 5 * 6 * 6 + 5 * 3 * 3 * 3 + 2 * 3 * 8 * 8)
    trained = kernel.requires_grad_()
    loss = torch.conv2d(images.detach(), trained).sum()
    moved = convolution_bytes(lambda: torch.autograd.backward(loss))
    assert moved == 4 * (2 * 5 * 6 * 6 + 2 * 3 * 8 * 8 + 5 * 3 * 3 * 3)
    loss = torch.conv2d(images, trained).sum()
    moved = convolution_bytes(lambda: torch.autograd.backward(loss))
    assert moved == 4 * (2 * 5 * 6 * 6 + 2 * (2 * 3 * 8 * 8 + 5 * 3 * 3 * 3))
