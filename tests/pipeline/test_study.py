"""Random sub-networks, the curvature of their loss, and the whole study in small."""

import json
import re
import subprocess
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import command, environment
from torch import nn

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.errors import JobError, NumericsError
from ekgsearch.jobfile import load_model
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.ekg.random_walk import random_subnetwork
from ekgsearch.methods.ekg.search import EkgSettings
from ekgsearch.pipeline.landscape import measure_landscape
from ekgsearch.pipeline.study import StudyJob, StudyOne
from ekgsearch.report.study import pearson
from ekgsearch.storage.tables import read_table

JOB = Path(__file__).parents[2] / "jobs" / "study_landscape_digits.yaml"


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return analyse(build(zoo_factory("resnet20", 10, (3, 8, 8)), seed=1).eval(), (3, 8, 8))


def test_random_subnetworks_meet_the_budget_and_follow_from_their_seed(graph: ChannelGraph) -> None:
    budget = set_budget(graph, reduction=0.5, absolute=None, unit="macs", counter="macs")
    found = {
        (criterion, seed): random_subnetwork(graph, budget, criterion=criterion, seed=seed, settings=EkgSettings())
        for criterion in ("random", "l1")
        for seed in (1, 2, 3)
    }
    assert len(set(found.values())) == 6
    for (criterion, seed), subnetwork in found.items():
        costs = cost(graph, subnetwork, "macs")
        assert budget.is_met(costs.macs, costs.params)
        assert subnetwork == random_subnetwork(graph, budget, criterion=criterion, seed=seed, settings=EkgSettings())
    name = next(name for name, kept in found["l1", 1].kept if 1 < len(kept) < graph.group(name).size)
    kept = found["l1", 1][name]
    first = graph.group(name).producers[0].layer
    norms = graph.network.get_submodule(first).weight.detach().abs().flatten(1).sum(1)
    if len(graph.group(name).producers) == 1:
        assert min(norms[list(kept)]) >= max(norms[[c for c in range(len(norms)) if c not in kept]])


def small_problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    batches = [(torch.randn(size, 1, 3, 3, dtype=torch.float64), torch.randint(0, 3, (size,))) for size in (6, 4)]
    return network.eval(), batches


def test_condition_numbers_equal_those_of_the_whole_hessian() -> None:
    network, batches = small_problem()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = measure_landscape(network, batches, points=3, radius=0.1, iterations=100, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    names, sizes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = torch.split(flat, [size.numel() for size in sizes])
        by_name = {name: part.view(size) for name, part, size in zip(names, parts, sizes, strict=True)}
        network[1].train()
        terms = [
            nn.functional.cross_entropy(torch.func.functional_call(network, by_name, (x,)), y, reduction="sum")
            for x, y in batches
        ]
        network[1].eval()
        return sum(terms) / 10

    network[1].track_running_stats = False
    start = torch.cat([p.detach().flatten() for p in network.parameters()])
    direction = torch.func.grad(loss)(start)
    ratios, relatives = [], []
    for step in (-0.1, 0.0, 0.1):
        here = start + step * direction
        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, here))
        ratios.append(float((values[0] / values[-1]).abs()))
        slope = (torch.func.grad(loss)(here) @ direction).abs()
        relatives.append(float(here.norm() * slope / (direction.norm() * loss(here))))
    assert found.loss == pytest.approx(float(loss(start)), rel=1e-9)
    assert found.eigenvalue_ratio == pytest.approx(np.mean(ratios), rel=1e-6)
    assert found.relative == pytest.approx(np.mean(relatives), rel=1e-6)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    network, batches = small_problem()
    nn.init.constant_(network[4].weight, float("nan"))
    with pytest.raises(NumericsError, match=r"study\.radius"):
        measure_landscape(network, batches, points=1, radius=0.1, iterations=2, seed=0)


def test_correlation_is_pearsons() -> None:
    first, second = pd.Series([1.0, 2.0, 3.0, 5.0]), pd.Series([2.0, 1.0, 4.0, 6.0])
    assert pearson(first, second) == pytest.approx(float(first.corr(second)))
    assert np.isnan(pearson(first, pd.Series([1.0] * 4)))
    assert np.isnan(pearson(first[:2], second[:2]))


def test_a_study_does_not_distil(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="the study fine-tunes by cross-entropy alone"):
        load_model(JOB, StudyJob, ["finetune.objective=ekg"])
    with pytest.raises(JobError, match=r"study\.by_l1 = 9 is more than study\.subnetworks = 6"):
        load_model(JOB, StudyJob, ["study.by_l1=9"])


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("search.criterion=l1", "search.criterion"),
        ("search.search_teacher=single", "search.search_teacher"),
        ("search.evaluation=naive", "search.evaluation"),
        ("search.slice_below=0.5", "search.slice_below"),
        ("search.precision=bf16", "search.precision"),
        ("search.channels_last=true", "search.channels_last"),
        ("search.compile=true", "search.compile"),
        ("search.racing=0.05", "search.racing"),
        ("search.quirks=[rounded_rates, nominal_batch_means]", "search.quirks nominal_batch_means"),
        ("search.quirks=reference", "search.quirks nominal_batch_means, search.quirks sequential_statistics"),
        ("search_run=elsewhere", "search_run"),
        ("finetune.baselines=[plain]", "finetune.baselines"),
    ],
)
def test_what_would_do_nothing_in_a_study_is_refused(setting: str, named: str) -> None:
    with pytest.raises(JobError, match=rf"evaluates no candidates: {re.escape(named)} would do nothing; leave it out"):
        load_model(JOB, StudyJob, [setting])


def test_step_trim_and_quirks_of_the_job_reach_the_random_cuts(
    graph: ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_model(JOB, StudyJob, ["search.step=0.3", "search.trim=0.1", "search.quirks=[whole_vector_shortlist]"])
    budget = set_budget(graph, reduction=0.5, absolute=None, unit="macs", counter="macs")
    found = []

    def note(*arguments: object, settings: EkgSettings, **others: object) -> None:
        found.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("ekgsearch.pipeline.study.random_subnetwork", note)
    state = SimpleNamespace(setup=SimpleNamespace(device="cpu", budget=budget), open_graph=lambda: graph)
    with pytest.raises(KeyboardInterrupt):
        StudyOne(job, 0).run(state)  # type: ignore[arg-type]
    assert found == [EkgSettings(step=0.3, trim=0.1, quirks=frozenset({"whole_vector_shortlist"}))]
    cuts = {random_subnetwork(graph, budget, criterion="l1", seed=1, settings=one) for one in (*found, EkgSettings())}
    assert len(cuts) == 2


@pytest.mark.slow
def test_the_study_in_small_continues_where_it_was_killed(tmp_path: Path) -> None:
    output = tmp_path / "study"
    smaller = ("pretrain.epochs=1", "study.subnetworks=3", "study.by_l1=1", "study.points=3", "data.test_images=90")
    arguments = command("study", JOB, *chain(*(("--set", one) for one in (f"output={output}", *smaller))))

    def run() -> str:
        done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run()
    assert "3 random sub-networks: Pearson correlation" in said
    assert "(eigenvalue_ratio)" in said
    assert (output / "plots" / "study.png").read_bytes().startswith(b"\x89PNG")
    rows = read_table(output / "tables" / "study.parquet")
    assert list(rows["criterion"]) == ["random"] * 2 + ["l1"]
    assert (rows["macs_reduction"] >= 0.5).all()
    assert (rows["test_images"] == 90).all()
    assert np.allclose(rows["final_top1"] * 0.9, (rows["final_top1"] * 0.9).round())
    assert np.isfinite(rows.select_dtypes("number")).all(axis=None)
    assert rows["potential_loss"].nunique() == 3

    journal = output / "journal.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    first_study = next(index for index, line in enumerate(lines) if json.loads(line)["kind"] == "finetune")
    journal.write_bytes(b"".join(lines[: first_study + 1]) + lines[first_study + 1][:20])
    for path in (output / "training").glob("study00[12]*"):
        if path.is_file():
            path.unlink()
    (output / "tables" / "study.parquet").unlink()
    assert run() == said
    assert journal.read_bytes() == whole
