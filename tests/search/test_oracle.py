"""Decisions that the program published with the paper made on ResNet-56 and CIFAR-10, repeated one by one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.views import Normalisation
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.weights import load_weights, read_sidecar
from ekgsearch.nets.zoo import build
from ekgsearch.records import Subnetwork
from ekgsearch.search.base import Candidate, Decision, Evaluation, GroupScores, mean_over_batches, sum_over_batches
from ekgsearch.search.budget import set_budget
from ekgsearch.search.ekg import EkgSearch, EkgSettings
from ekgsearch.search.evaluate import BatchEvaluator, SearchBatch, evaluations
from ekgsearch.search.networks import FastNetworks
from ekgsearch.search.steps import QUIRKS

NOMINAL_BATCH = 256
SCORE_TOLERANCE = 1e-6
"""Absolute, on scores of about 5e-3; two independent float32 programs differed by at most 6.5e-7."""

IMPORTANCE_TOLERANCE = 2e-2
"""Share of the largest score of a channel group. Float32 and float64 agree to 2e-4 here, and both differ from the
recorded scores by up to 1.4e-2: the recorded logits are up to 3e-4 off, which gradients of nearly perfect predictions
(loss 6e-4) amplify."""


@dataclass
class ForcedEvaluator:
    """Decides by the recorded channel scores, from the recorded ensemble knowledge; remembers its own scores.

    Scores of two channels may differ by less than the tolerance; with the recorded ones the same channels go.
    """

    batches: BatchEvaluator
    recorded_scores: GroupScores = field(default_factory=dict)
    own_scores: GroupScores = field(default_factory=dict)

    def begin(self, history: Sequence[Subnetwork]) -> Evaluation:
        return mean_over_batches(self.batches.begin(history), NOMINAL_BATCH)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        self.own_scores = sum_over_batches(self.batches.scores(current, count))
        return self.recorded_scores

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return evaluations(self.batches.evaluate(current, candidates), len(candidates), NOMINAL_BATCH)

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return evaluations(self.batches.settle(candidates), len(candidates), NOMINAL_BATCH)


@dataclass
class Oracle:
    folder: Path
    graph: ChannelGraph
    evaluator: ForcedEvaluator
    search: EkgSearch
    trace: list[dict[str, Any]]

    def state_after(self, iteration: int) -> tuple[Subnetwork, dict[str, Fraction], np.ndarray]:
        """Sub-network, rates and ensemble knowledge that the program had after an iteration; 0 is its start."""
        names = [group.name for group in self.graph.groups]
        if iteration == 0:
            with np.load(self.folder / "initial_logits.npz") as arrays:
                logits = arrays[arrays.files[0]]
            return self.graph.full(), dict.fromkeys(names, Fraction(1)), logits
        with np.load(self.folder / "iters" / f"iter_{iteration:04d}.npz") as arrays:
            kept = {name: np.flatnonzero(arrays[f"mask_{index:02d}"]) for index, name in enumerate(names)}
            rates = {
                name: Fraction(repr(float(width))) for name, width in zip(names, arrays["width_list"], strict=True)
            }
            return Subnetwork.of(kept), rates, arrays["knowledge"]


@pytest.fixture(scope="module")
def oracle(data_dir: Path) -> Oracle:
    torch.set_num_threads(2)
    folder = data_dir / "oracle"
    network = build(NetSpec("resnet56", 10, (3, 32, 32), padding="tf_same"))
    load_weights(network, folder / "resnet56_after_warmup.safetensors")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    graph = analyse(network.eval(), (3, 32, 32))
    sidecar = read_sidecar(data_dir / "weights" / "resnet56_cifar10_ekg.safetensors")
    train = open_dataset("cifar10", data_dir).train
    ids = torch.tensor(json.loads((folder / "indices.json").read_text())["d_val"])
    batches = [
        SearchBatch(index, train.read(part), train.labels[part])
        for index, part in enumerate(torch.split(ids, NOMINAL_BATCH))
    ]
    normalise = Normalisation(sidecar.mean, sidecar.std)
    evaluator = ForcedEvaluator(BatchEvaluator(FastNetworks(graph), normalise, batches, NOMINAL_BATCH))
    budget = set_budget(graph, reduction=0.45, absolute=None, unit="macs", counter="ekg")
    search = EkgSearch(graph, evaluator, budget, EkgSettings(step=0.2, quirks=frozenset(QUIRKS), tie_tolerance=1e-5))
    trace = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    return Oracle(folder, graph, evaluator, search, trace)


def test_channel_groups_are_the_programs_gates_in_order(oracle: Oracle) -> None:
    gates = json.loads((oracle.folder / "gates.json").read_text())
    assert [group.size for group in oracle.graph.groups] == [gate["channels"] for gate in gates]
    assert [group.uses for group in oracle.graph.groups] == [gate["num_call"] for gate in gates]
    for group, gate in zip(oracle.graph.groups, gates, strict=True):
        assert group.name == gate["pt_name"]
        assert {member.layer for member in (*group.producers, *group.norms)} == set(gate["out_of"])
        assert {member.layer for member in group.consumers} == set(gate["in_of"])


@pytest.mark.parametrize("iteration", [1, 2, *(pytest.param(index, marks=pytest.mark.slow) for index in range(3, 9))])
def test_a_recorded_decision_is_repeated(iteration: int, oracle: Oracle) -> None:
    recorded = oracle.trace[iteration - 1]
    subnetwork, rates, knowledge = oracle.state_after(iteration - 1)
    parts = dict(enumerate(torch.split(torch.from_numpy(knowledge), NOMINAL_BATCH)))
    oracle.evaluator.batches.set_knowledge(parts, iteration)
    costs = (10**9, 10**9)
    before = Decision(iteration - 1, "", (), subnetwork, Fraction(1), None, Evaluation(0, 0, 0, 1), *costs)

    names = [group.name for group in oracle.graph.groups]
    with np.load(oracle.folder / "iters" / f"iter_{iteration:04d}.npz") as arrays:
        expected = {name: arrays[f"score_{index:02d}"].astype(np.float64) for index, name in enumerate(names)}
    oracle.evaluator.recorded_scores = expected

    decision = oracle.search.decide(before, rates)

    for name in names:
        difference = np.abs(oracle.evaluator.own_scores[name] - expected[name]).max()
        assert difference <= IMPORTANCE_TOLERANCE * expected[name].max(), name
    assert decision.threshold == pytest.approx(recorded["otsu_threshold"], rel=1e-3)
    shortlist = [names[index] for index, flag in enumerate(recorded["do_check"]) if flag]
    assert [outcome.group for outcome in decision.candidates] == shortlist
    for outcome, line in zip(decision.candidates, recorded["candidates"], strict=True):
        assert outcome.group == names[line["gate"]]
        assert outcome.num_kept == line["channels"]
        assert (outcome.macs, outcome.params) == (line["flops"], line["params"])
        assert outcome.evaluation.loss == pytest.approx(line["loss"], abs=SCORE_TOLERANCE)
        assert outcome.evaluation.score == pytest.approx(line["score"], abs=SCORE_TOLERANCE)
    if recorded["margin_to_second"] >= SCORE_TOLERANCE:
        assert decision.group == names[recorded["winner_gate"]]
