"""The exemplars of trained networks: a row for every layer and beta, the same network in both tables, and pictures."""

from pathlib import Path

import pytest

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bench.base import run_bench
from ekgsearch.bench.exemplars import COARSE, FINE
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import analyse
from ekgsearch.errors import JobError
from ekgsearch.storage.tables import read_table

JOB = Path(__file__).parents[2] / "jobs" / "bench_exemplars.yaml"


def test_every_layer_is_counted_and_what_goes_follows_from_the_counts(tmp_path: Path) -> None:
    settings = ["weights=[]", "betas=[0.9, 0.97]", "curves=false", f"output={tmp_path / 'bench.parquet'}"]
    measured = {(row.case, row.quantity): row.value for row in run_bench(JOB, settings)[1]}
    counts, reductions = (read_table(tmp_path / f"epruner_{name}.parquet") for name in ("exemplars", "reduction"))
    assert len(counts) == 2 * 9
    assert list(reductions["beta"]) == [0.9, 0.97]
    graph = analyse(build(zoo_factory("resnet20", 10, (3, 32, 32)), seed=0).eval(), (3, 32, 32))
    full = cost(graph, graph.full(), "thop_old").macs
    for beta, layers in counts.groupby("beta"):
        subnetwork = graph.full()
        for row in layers.itertuples():
            subnetwork = subnetwork.replace(row.channel_group, list(range(row.num_kept)))
        macs = cost(graph, subnetwork, "thop_old").macs
        found = reductions[reductions["beta"] == beta].iloc[0]
        assert (found["kept_macs"], found["macs_reduction"]) == (macs, 1 - macs / full)
        assert measured[f"resnet20, random weights, beta {beta:g}", "filters kept"] == layers["num_kept"].sum()
    assert counts["num_kept"].sum() < counts["size"].sum()
    for name in ("exemplars", "reduction"):
        assert (tmp_path / f"epruner_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_curves_cover_all_betas_and_the_published_ones_finely() -> None:
    assert (COARSE[0], COARSE[-1], len(COARSE)) == (0.01, 1.0, 100)
    assert (FINE[0], FINE[-1], len(FINE)) == (0.7, 0.8, 101)
    assert {0.73, 0.76} <= {*COARSE} & {*FINE}


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"weights = .*none: there is no file .*name files of trained networks"):
        run_bench(JOB, [f"weights=[{tmp_path}/none]", f"output={tmp_path / 'bench.parquet'}"])
