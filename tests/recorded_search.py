"""A folder of recorded decisions as the program published with the paper writes it, of a small search made here."""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.base import Decision, GroupScores, sum_over_batches
from ekgsearch.methods.budget import set_budget
from ekgsearch.methods.ekg.quirks import QUIRKS
from ekgsearch.methods.ekg.replay.oracle import Oracle
from ekgsearch.methods.ekg.replay.replay import NOMINAL_BATCH, Replay, _GivenScores
from ekgsearch.methods.ekg.search import EkgSearch, EkgSettings, rate_of
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch
from ekgsearch.methods.networks import FastNetworks

REDUCTION = 0.45
CLOSED_SUM = 1e12
"""What the program takes for the sum of a gate whose width has reached 0."""


def record_search(
    folder: Path,
    graph: ChannelGraph,
    batch: SearchBatch,
    iterations: int,
    *,
    closed: Sequence[str] = (),
    nudge: Callable[[int, GroupScores], None] = lambda number, scores: None,
) -> None:
    """Search with all quirks and write what happens.

    Args:
        folder: where to; made.
        graph: the network.
        batch: the search subset, at most 256 images.
        iterations: how many.
        closed: channel groups that keep one channel and have the width 0 from iteration 1 on.
        nudge: changes the channel scores of an iteration before they are used and recorded.
    """
    (folder / "iters").mkdir(parents=True)
    names, full = [group.name for group in graph.groups], graph.full()
    costs = cost(graph, full, "ekg")
    (folder / "indices.json").write_text(json.dumps({"d_val": list(range(len(batch.labels)))}))
    (folder / "initial.json").write_text(json.dumps({"flops": costs.macs, "params": costs.params}))
    evaluator = BatchEvaluator(FastNetworks(graph, 0.0, "batch_sequential"), lambda x: x, [batch], NOMINAL_BATCH)
    budget = set_budget(graph, reduction=REDUCTION, absolute=None, unit="macs", counter="ekg")
    _GivenScores(evaluator, None).begin([full])
    np.savez(folder / "initial_logits.npz", logits=evaluator.knowledge(0).float().numpy())
    current = _standing(graph, 0, full)
    rates = dict.fromkeys(names, Fraction(1))
    lines = []
    scores = sum_over_batches(evaluator.scores(full, 1))
    for number in range(1, iterations + 1):
        nudge(number, scores)
        search = EkgSearch(graph, _GivenScores(evaluator, scores), budget, EkgSettings(quirks=frozenset(QUIRKS)))
        decision = search.decide(current, rates)
        lines.append(_line(decision, names, rates, scores))
        rates[decision.group], subnetwork = rate_of(decision), decision.subnetwork
        if number == 1:
            for name in closed:
                rates[name], subnetwork = Fraction(0), subnetwork.replace(name, [int(scores[name].argmax())])
        current = _standing(graph, number, subnetwork)
        arrays: dict[str, Any] = {"width_list": np.array([float(rate) for rate in rates.values()])}
        for index, group in enumerate(graph.groups):
            arrays[f"score_{index:02d}"] = scores[group.name].astype(np.float32)
            arrays[f"mask_{index:02d}"] = np.isin(np.arange(group.size), subnetwork[group.name])
        scores = sum_over_batches(evaluator.scores(subnetwork, number + 1))
        arrays["knowledge"] = evaluator.knowledge(0).float().numpy()
        np.savez(folder / "iters" / f"iter_{number:04d}.npz", **arrays)
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)))


def open_recorded(folder: Path, graph: ChannelGraph, batch: SearchBatch) -> Replay:
    """Open such a folder with the same network and images."""
    return Replay(Oracle.open(folder), graph, lambda images: images, [batch], REDUCTION, slice_below=0.0)


def joined(batches: Sequence[SearchBatch]) -> SearchBatch:
    """All batches as one."""
    parts = [(batch.pixels, batch.labels) for batch in batches]
    return SearchBatch(0, torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts]))


def change_line(folder: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the line of an iteration in the trace."""
    lines = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    change(lines[number - 1])
    (folder / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)))


def change_arrays(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the arrays of a file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(path, **arrays)


def _costs(graph: ChannelGraph, subnetwork: Any) -> tuple[int, int]:
    costs = cost(graph, subnetwork, "ekg")
    return costs.macs, costs.params


def _standing(graph: ChannelGraph, number: int, subnetwork: Any) -> Decision:
    macs, params = _costs(graph, subnetwork)
    return Decision(iteration=number, group="", changed=(), subnetwork=subnetwork, macs=macs, params=params)


def _line(decision: Decision, names: list[str], rates: dict[str, Fraction], scores: GroupScores) -> dict[str, Any]:
    tried = [outcome.group for outcome in decision.candidates]
    order = sorted(outcome.evaluation.score for outcome in decision.candidates)
    sums = {name: 0.0 if rate < 1 else float(scores[name].sum()) for name, rate in rates.items()}
    return {
        "step": decision.iteration,
        "gate_scores_used_by_otsu": [sums[name] if rates[name] > 0 else CLOSED_SUM for name in names],
        "otsu_threshold": decision.own["threshold"],
        "do_check": [name in tried for name in names],
        "candidates": [
            {
                "gate": names.index(outcome.group),
                "channels": outcome.num_kept,
                "flops": float(outcome.macs),
                "params": float(outcome.params),
                "loss": outcome.evaluation.loss,
                "score": outcome.evaluation.score,
            }
            for outcome in decision.candidates
        ],
        "winner_gate": names.index(decision.group),
        "margin_to_second": order[1] - order[0],
    }
