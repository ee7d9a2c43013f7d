"""The loop repeats the warm-up that another program recorded, step by step over the real images."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.sidecar import read_sidecar
from ekgsearch.artefact.weights import load_weights
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.subset import split_search_subset
from ekgsearch.data.views import Normalisation
from ekgsearch.finetune.config import TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import StepReport
from ekgsearch.finetune.world import World
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.warmup import warmup_config
from ekgsearch.storage.tensors import load_tensors

ALLOWED_SHARE = 0.05
"""Largest error as a share of how far a tensor moves. The trainings round differently: one ulp of a weight of 1 is
already 0.3 % of how far it moves."""


@pytest.mark.slow
def test_one_epoch_of_warmup_gives_the_recorded_network(data_dir: Path) -> None:
    path = next((data_dir / "weights").rglob("resnet56_cifar10_ekg.safetensors"))
    sidecar = read_sidecar(path)
    assert sidecar.net is not None
    assert sidecar.normalisation is not None
    network = build(sidecar.net)
    load_weights(network, path)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    dataset = open_dataset("cifar10", data_dir)
    _, ids = split_search_subset(dataset.train.labels)
    job = load_job(Path(__file__).parents[2] / "jobs" / "reference_resnet56_cifar10.yaml")
    config = warmup_config(job, len(ids))
    data = TrainData(dataset.train, Normalisation(*sidecar.normalisation), ids=ids)
    losses: list[float] = []

    def note(report: StepReport) -> None:
        assert report.loss is not None
        losses.append(float(report.loss))

    result = train(network, replace(data, test=None), config, world=World(torch.device("cpu")), on_step=note)

    recorded = json.loads((data_dir / "oracle" / "warmup.json").read_text())
    assert losses == pytest.approx([step["loss"] / 2 for step in recorded], rel=1e-3)  # it divided 256 images by 128
    assert result.epochs[0].loss == pytest.approx(recorded[-1]["loss_running_mean"] / 2, rel=1e-4)
    assert result.epochs[0].values["train_top1"] == 100.0
    expected, _ = load_tensors(data_dir / "oracle" / "resnet56_after_warmup.safetensors", require_checksum=False)
    found = network.state_dict()
    for name, value in expected.items():
        moved, error = (value - start[name]).abs().max(), (found[name] - value).abs().max()
        assert error <= ALLOWED_SHARE * moved, f"{name} moved by {moved:.3g}, found off by {error:.3g}"
