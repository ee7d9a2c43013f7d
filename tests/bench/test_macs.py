"""What a search executes, counted: the gates on the cost of the exact tier."""

import itertools
from pathlib import Path

import pytest
import torch

from ekgsearch.bench.base import Measurement, load_bench, run_bench
from ekgsearch.bench.macs import CountingEvaluator, Settings, naive_macs, noise, run
from ekgsearch.errors import JobError
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings
from ekgsearch.methods.evaluate import BatchEvaluator
from ekgsearch.methods.networks import NaiveNetworks

JOB = Path(__file__).parents[2] / "jobs" / "bench_macs.yaml"


def found(measurements: list[Measurement], quantity: str, reduction: str) -> float:
    return next(m.value for m in measurements if m.quantity == quantity and reduction in m.case)


def test_the_naive_count_is_what_the_naive_evaluation_executes() -> None:
    settings = Settings(bench="macs", net="resnet20", num_classes=4, image_size=16, images=4, batch_size=2)
    graph, batches = noise(settings)
    counted = CountingEvaluator(BatchEvaluator(NaiveNetworks(graph), lambda images: images, batches, divisor=4))
    budget = set_budget(graph, reduction=0.5, absolute=None, unit="macs", counter="macs")
    decisions = list(itertools.islice(EkgSearch(graph, counted, budget, EkgSettings(step=0.4)).run(), 3))
    for decision, executed in zip(decisions[1:], counted.iterations, strict=True):
        assert executed.total == naive_macs(graph, decision, images=4)
        assert executed.settle == 0


@pytest.mark.parametrize("reduction", [0.15, pytest.param(0.45, marks=pytest.mark.slow)])
def test_a_resnet56_search_executes_at_most_1_in_1_9_of_the_naive_macs(reduction: float) -> None:
    """Every feature map is a sixteenth of that of a 32-pixel image, so shares of MACs are the same."""
    torch.set_num_threads(1)
    settings = Settings(
        bench="macs", net="resnet56", num_classes=10, image_size=8, images=8, batch_size=8, reductions=(reduction,)
    )
    assert found(run(settings), "naive / executed", f"{reduction:.0%}") >= 1.9


def test_what_is_not_kept_is_walked_again() -> None:
    settings = Settings(bench="macs", net="resnet20", num_classes=4, image_size=8, images=4, batch_size=2)
    settings = settings.model_copy(update={"reductions": (0.1,)})
    kept, walked = (
        {
            measured.quantity: measured.value
            for measured in run(settings.model_copy(update={"prefix_bytes": prefix_bytes}))
        }
        for prefix_bytes in (settings.prefix_bytes, 0)
    )
    assert walked["naive, per image"] == kept["naive, per image"]
    assert walked["executed, per image"] > 1.05 * kept["executed, per image"]


@pytest.mark.parametrize(
    ("reductions", "said"),
    [("[]", "reductions = .*at least 1 item"), ("[0.4, 1.0]", "reductions.1 = 1.0: must be less than 1")],
)
def test_reductions_that_no_search_has_are_refused(reductions: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        load_bench(JOB, [f"reductions={reductions}"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_resnet50_search_meets_the_goals_at_both_reductions(tmp_path: Path) -> None:
    _, measurements, _ = run_bench(JOB, [f"output={tmp_path / 'rows.parquet'}"])
    assert found(measurements, "naive / executed", "45%") >= 2.1
    assert found(measurements, "naive / executed", "55%") >= 2.3
