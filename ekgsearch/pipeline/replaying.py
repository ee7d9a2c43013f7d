"""Open the network and the images that a recorded search used, and put agreement into lines of text."""

from pathlib import Path

import torch

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.weights import load_weights
from ekgsearch.channels.graph import analyse
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.views import Normalisation
from ekgsearch.errors import DataError
from ekgsearch.methods.ekg.replay.agreement import FreeRun, IterationReport
from ekgsearch.methods.ekg.replay.oracle import Oracle
from ekgsearch.methods.ekg.replay.replay import NOMINAL_BATCH, Replay
from ekgsearch.methods.evaluate import SearchBatch
from ekgsearch.methods.networks import SLICE_BELOW

NETWORK = zoo_factory("resnet56", 10, (3, 32, 32), shortcut="projection", padding="tf_same")
DATASET = "cifar10"
MEAN, STD = (113.9, 123.0, 125.3), (66.7, 62.1, 63.0)
"""Input normalisation of the recorded program, in pixel units 0..255, for red, green and blue."""


def open_replay(
    folder: Path, weights: Path | None, data_root: Path, reduction: float, slice_below: float = SLICE_BELOW
) -> Replay:
    """Open a folder of recorded decisions with the network and the images that they were made on.

    Args:
        folder: the recorded decisions.
        weights: weights that the search started from; None for the one .safetensors file in the folder.
        data_root: folder of the CIFAR-10 images.
        reduction: share of the cost that the recorded search removed.
        slice_below: as `search.slice_below` of a job.

    Raises:
        DataError, NetworkError: something is missing, damaged or belongs to another network.
    """
    oracle = Oracle.open(folder)
    network = build(NETWORK)
    load_weights(network, weights or _only_weights(folder))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    train = open_dataset(DATASET, data_root).train
    ids = torch.tensor(oracle.search_ids)
    if int(ids.min()) < 0 or int(ids.max()) >= len(train):
        raise DataError(
            f"{folder}: expected image ids within 0..{len(train) - 1}, found {int(ids.min())}..{int(ids.max())}"
        )
    batches = [
        SearchBatch(index, train.read(part), train.labels[part])
        for index, part in enumerate(torch.split(ids, NOMINAL_BATCH))
    ]
    graph = analyse(network.eval(), NETWORK.input_shape)
    return Replay(oracle, graph, Normalisation(MEAN, STD), batches, reduction, slice_below)


def _only_weights(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise DataError(
            f"{folder}: expected one .safetensors file with the weights that the search started from, found "
            f"{[path.name for path in found]}; name the file with --weights"
        )
    return found[0]


def iteration_text(report: IterationReport) -> str:
    """One line on an iteration; where it breaks, one more for each reason."""
    importance = f"{report.importance:.1e}"
    if report.draws:
        importance += f" with {report.draws} rounding draws ({report.undrawn_importance:.1e} without)"
    notes = f", near ties in {', '.join(report.near_ties)}" if report.near_ties else ""
    line = (
        f"iteration {report.iteration}: {'BREAKS' if report.breaks else 'agrees'}: importance {importance}, "
        f"sums {report.sums:.1e}, threshold {report.threshold:.1e}, {report.num_candidates} candidates, "
        f"loss {report.loss:.1e}, score {report.score:.1e}, winner {report.winner} (margin {report.margin:.1e}), "
        f"{report.macs:,} FLOPs, {report.params:,} parameters{notes}"
    )
    return "\n".join([line, *(f"  {reason}" for reason in report.breaks)])


def free_run_text(found: FreeRun) -> str:
    """One line on a free run."""
    verdict = "agrees" if found.broke_at is None else f"BREAKS in iteration {found.broke_at}"
    if found.parted_at is not None:
        verdict += f", parted at iteration {found.parted_at} by a near tie of importance within {found.near_tie:.1e}"
    return f"free run over iterations {found.first} to {found.last}: {verdict}"
