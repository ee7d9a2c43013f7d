"""An objective that the package does not know trains, resumes and is judged without a change to the loop."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune.reconstruction import CONFIG, ENTRY, LEVEL, Reconstruction, make_autoencoder, unlabelled

from ekgsearch.errors import JobError
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import EpochMetrics, StepReport
from ekgsearch.finetune.objectives.registry import OBJECTIVES
from ekgsearch.finetune.world import World

ALONE = World(torch.device("cpu"))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> FinetuneConfig:
    monkeypatch.setitem(OBJECTIVES, "reconstruction", ENTRY)
    return replace(CONFIG, objective="reconstruction")


def test_without_its_line_it_is_unknown() -> None:
    with pytest.raises(JobError, match=r"expected objective plain, .*byol, found reconstruction"):
        replace(CONFIG, objective="reconstruction")


def test_an_objective_without_labels_trains_by_its_own_loss_metric_and_schedule(
    own: FinetuneConfig, data: TrainData
) -> None:
    result = train(make_autoencoder(), unlabelled(data), own, world=ALONE)
    errors = [epoch.values["test_error"] for epoch in result.epochs]
    assert errors[-1] < 0.8 * errors[0]
    assert (result.last(), result.best_value) == (errors[-1], min(errors))
    rate, best, expected = own.learning_rate, math.inf, []
    for error in errors:
        expected.append(rate)
        if error < 0.98 * best:
            best = error
        else:
            rate *= own.decay
    assert [epoch.learning_rate for epoch in result.epochs] == expected
    assert len(set(expected)) > 2, "the rate must wait, and must fall"
    assert expected[1] == expected[0]
    for epoch in result.epochs:
        assert epoch.values.keys() == {*Reconstruction.parts, "test_error"}
        assert epoch.loss == pytest.approx(epoch.values["loss_shape"] + epoch.values["loss_size"])
        row = epoch.row(run="r", phase="finetune", network="full", objective="reconstruction", test_images=30)
        assert row.loss == epoch.loss
        assert math.isnan(row.train_top1)
        assert EpochMetrics.from_dict(epoch.to_dict()) == epoch


@pytest.mark.parametrize("killed_at", [(2, 1), (9, 3)])
def test_it_continues_to_the_same_bits(
    own: FinetuneConfig, data: TrainData, tmp_path: Path, killed_at: tuple[int, int]
) -> None:
    given = {"world": ALONE, "checkpoint_every_steps": 1}
    whole, resumed = make_autoencoder(), make_autoencoder()
    losses: dict[bool, list[float]] = {True: [], False: []}
    expected = train(whole, unlabelled(data), own, **given, on_step=lambda step: losses[False].append(float(step.loss)))

    def kill(step: StepReport) -> None:
        if (step.epoch, step.step) == killed_at:
            raise InterruptedError
        losses[True].append(float(step.loss))

    place = FolderCheckpoints(tmp_path)
    with pytest.raises(InterruptedError):
        train(make_autoencoder(), unlabelled(data), own, **given, checkpoint=place, on_step=kill)

    def note(step: StepReport) -> None:
        losses[True].append(float(step.loss))

    result = train(resumed, unlabelled(data), own, **given, checkpoint=place, on_step=note)
    assert losses[True] == losses[False]
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    clocks = {"wall_seconds": 0.0, "wait_seconds": 0.0}
    assert [replace(one, **clocks) for one in result.epochs] == [replace(one, **clocks) for one in expected.epochs]


def test_what_it_does_after_a_step_is_done_after_every_step(
    own: FinetuneConfig, data: TrainData, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    clamp = Reconstruction.after_step

    def noting(objective: Reconstruction, done: int, num_steps: int) -> None:
        clamp(objective, done, num_steps)
        told.append((done, num_steps))
        assert objective.level.abs().max() <= LEVEL

    monkeypatch.setattr(Reconstruction, "after_step", noting)
    train(make_autoencoder(), unlabelled(data), replace(own, epochs=2), world=ALONE)
    assert told == [(done, 12) for done in range(12)]
