"""Published results that ship with the package."""

from pathlib import Path

import pytest

from ekgsearch.jobfile import load_job
from ekgsearch.report.published import UNPRUNED, published_for, published_near, published_results

JOBS = Path(__file__).parents[2] / "jobs"


def test_every_published_result_names_its_source_and_lies_in_range():
    table = published_results()
    assert (table["source"].str.len() > 5).all()
    assert (table["top1"].notna() | table["top1_diff"].notna()).all()
    assert table["top1"].dropna().between(60, 100).all()
    assert table["top1_diff"].dropna().between(-6, 2).all()
    assert table["macs_reduction"].dropna().between(0, 0.9).all()
    assert not table.duplicated(["dataset", "architecture", "method", "macs_reduction", "top1", "top1_diff"]).any()


def test_resnet56_has_the_ten_points_of_the_paper():
    table = published_for("cifar10", "resnet56")
    ekg = table[table["method"] == "EKG"]
    assert list(ekg["top1"]) == [94.26, 94.28, 94.19, 94.25, 94.15, 94.09, 93.92, 93.89, 93.69, 93.39]
    assert list(ekg["macs_reduction"].round(4))[5] == 0.5012


@pytest.mark.parametrize(
    ("dataset", "architecture"),
    [
        ("CIFAR-10", "ResNet-56"),
        ("imagenet", "resnet50"),
        ("ImageNet-1k", "resnet50"),
        ("cifar100", "mobilenet_v2_cifar"),
    ],
)
def test_names_are_compared_without_punctuation_and_variant(dataset, architecture):
    assert not published_for(dataset, architecture).empty


def test_an_unknown_network_has_no_published_results():
    assert published_for("digits", "resnet20").empty


def test_near_results_are_pruned_networks_of_like_cost_best_first():
    near = published_near("cifar10", "resnet56", 0.5)
    assert near["top1"].is_monotonic_decreasing
    assert ((near["macs_reduction"] - 0.5).abs() <= 0.06).all()
    assert UNPRUNED not in set(near["method"])
    assert len(near) >= 5


@pytest.mark.parametrize(
    ("dataset", "architecture", "starts"),
    [
        ("cifar10", "vgg16", {"EPruner", "EPruner, random projection", "EPruner, l1", "EPruner, random"}),
        ("image_folder", "resnet50", set()),
        ("imagenet", "resnet152", {"EPruner", "EPruner, random projection", "EPruner, l1", "EPruner, random"}),
    ],
)
def test_the_published_networks_of_the_same_method_stand_next_to_a_run_however_far(dataset, architecture, starts):
    own = published_near(dataset, architecture, 0.3, method="epruner", most=6)
    assert set(own[own["method"].str.startswith("EPruner")]["method"]) == starts
    assert len(own) <= 6
    assert own["top1"].is_monotonic_decreasing


def test_what_epruner_keeps_is_given_in_channels_operations_and_parameters():
    near = published_near("cifar10", "resnet56", 0.6, method="epruner").set_index("method")
    assert tuple(near.loc["EPruner", ["channels", "macs", "params", "top1"]]) == (1450, 49_350_000, 390_000, 93.18)
    assert near.loc["EPruner, random", "top1"] == 91.45
    table = published_results()
    of_epruner = table[table["source"].str.startswith("EPruner (")]
    full = {(row.dataset, row.architecture): row.macs for row in of_epruner.itertuples() if row.method == UNPRUNED}
    for row in of_epruner[of_epruner["channels"].notna() & of_epruner["method"].str.startswith("EPruner")].itertuples():
        assert 1 - row.macs / full[row.dataset, row.architecture] == pytest.approx(row.macs_reduction, abs=2e-4), row


@pytest.mark.parametrize(
    "path", sorted({*JOBS.glob("ekg_*.yaml"), *JOBS.glob("epruner_*.yaml")}), ids=lambda path: path.stem
)
def test_a_job_of_the_papers_finds_their_published_networks(path, monkeypatch):
    for name in ("IMAGENET", "EKGSEARCH_DATA"):
        monkeypatch.setenv(name, "/data")
    job = load_job(path)
    found = published_for(job.data.title or job.data.name, job.net.name)
    methods = {name.partition(",")[0].lower() for name in found["method"]}
    assert job.search.method in methods or "digits" in path.stem
