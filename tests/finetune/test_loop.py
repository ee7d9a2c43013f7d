"""The loop learns, resumes to the bit, and stops before it does harm."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune.conftest import TensorBank
from torch import Tensor, nn

from ekgsearch.bank.rows import BankRows
from ekgsearch.data.datasets import ArrayImages
from ekgsearch.data.views import Normalisation
from ekgsearch.errors import EkgError, JobError, NetworkError, ResumeError, Stopped, StorageError
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import EpochMetrics, Metric, TrainResult
from ekgsearch.finetune.resume import read_checkpoint, write_checkpoint
from ekgsearch.finetune.state import start
from ekgsearch.finetune.world import World

ALONE = World(torch.device("cpu"))
Make = Callable[[], nn.Module]
OBJECTIVES = ["plain", "single", "ekg", "contrastive", "byol"]
CLASSIFIER = "6"
"""Path of the linear layer of `make_network`."""


class KilledError(Exception):
    """Stands for the end of a process."""


def equal_states(left: nn.Module, right: nn.Module) -> bool:
    other = right.state_dict()
    return all(torch.equal(value, other[name]) for name, value in left.state_dict().items())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(data: TrainData, config: FinetuneConfig, make_network: Make, bank, objective) -> None:
    config = replace(config, objective=objective, epochs=12, milestones=(8,))
    teacher = make_network()
    if objective == "single":
        train(teacher, data, replace(config, objective="plain"), world=ALONE)
    result = train(make_network(), data, config, world=ALONE, bank=bank, teacher=teacher, classifier=CLASSIFIER)
    assert result.last() > 90
    assert result.epochs[-1].loss < 0.7 * result.epochs[0].loss
    assert [metrics.epoch for metrics in result.epochs] == list(range(1, 13))
    assert all(metrics.images == 48 for metrics in result.epochs)
    assert (result.epochs[0].values.get("loss_distillation", 0) > 0) == (objective != "plain")


def test_teachers_worse_than_the_student_fall_out_of_use(
    data: TrainData, config: FinetuneConfig, make_network: Make, bank
) -> None:
    result = train(make_network(), data, replace(config, epochs=25, milestones=()), world=ALONE, bank=bank)
    used = [metrics.values["num_teachers_used"] for metrics in result.epochs]
    assert used[0] > used[-1] >= 1


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_and_resumed_training_ends_with_the_same_bits(
    data: TrainData, config: FinetuneConfig, make_network: Make, bank, tmp_path: Path, objective: str, killed_after: int
) -> None:
    config = replace(config, objective=objective)
    teacher = make_network()
    whole, resumed = make_network(), make_network()
    given = {"world": ALONE, "bank": bank, "teacher": teacher, "classifier": CLASSIFIER}
    expected = train(whole, data, config, **given)

    def kill(metrics: EpochMetrics) -> None:
        if metrics.epoch == killed_after:
            raise KilledError

    place = FolderCheckpoints(tmp_path)
    with pytest.raises(KilledError):
        train(make_network(), data, config, **given, checkpoint=place, on_epoch=kill)
    torch.manual_seed(99)  # the resumed process has other random numbers in its generators
    again: list[int] = []
    result = train(
        resumed,
        data,
        config,
        **given,
        checkpoint=FolderCheckpoints(tmp_path),
        on_epoch=lambda metrics: again.append(metrics.epoch),
    )
    assert again == list(range(killed_after + 1, 5))
    assert equal_states(whole, resumed)
    clocks = {"wall_seconds": 0.0, "wait_seconds": 0.0}
    assert [repr(replace(found, **clocks)) for found in result.epochs] == [
        repr(replace(row, **clocks)) for row in expected.epochs
    ]


def test_a_finished_training_is_not_repeated(
    data: TrainData, config: FinetuneConfig, make_network: Make, tmp_path
) -> None:
    config = replace(config, objective="plain")
    first, second = make_network(), make_network()
    train(first, data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))
    steps: list[int] = []
    result = train(second, data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path), on_step=steps.append)
    assert steps == []
    assert len(result.epochs) == 4
    assert equal_states(first, second)


def test_training_leaves_the_callers_random_numbers_alone(
    data: TrainData, config: FinetuneConfig, make_network: Make
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(make_network(), data, replace(config, objective="plain", epochs=1), world=ALONE)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_another_training_is_refused_with_the_difference(
    data: TrainData, config: FinetuneConfig, make_network: Make, tmp_path: Path
) -> None:
    config = replace(config, objective="plain", epochs=1)
    train(make_network(), data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))
    other = replace(config, learning_rate=0.07, epochs=2)
    with pytest.raises(ResumeError, match=r"epochs: this training has 2, the checkpoint 1; .*learning_rate: .*0.07"):
        train(make_network(), data, other, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))
    network = make_network()
    network[6].bias.data += 1  # type: ignore[index]
    with pytest.raises(ResumeError, match="initial weights"):
        train(network, data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))
    brighter = replace(data, normalisation=Normalisation((61.0,) * 3, data.normalisation.std))
    with pytest.raises(ResumeError, match=r"input mean: this training has \(61.0, .*\), the checkpoint \(60.0, "):
        train(make_network(), brighter, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))


def test_a_damaged_checkpoint_is_named(
    data: TrainData, config: FinetuneConfig, make_network: Make, tmp_path: Path
) -> None:
    config = replace(config, objective="plain", epochs=1)
    train(make_network(), data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))
    (file,) = tmp_path.glob("epoch-000001/*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StorageError, match="epoch-000001"):
        train(make_network(), data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path))


def test_only_the_named_ids_are_trained_on(data: TrainData, config: FinetuneConfig, make_network: Make) -> None:
    seen: list[int] = []

    class Watched(ArrayImages):
        def read(self, ids: Tensor) -> Tensor:
            seen.extend(ids.tolist())
            return super().read(ids)

    images = Watched(data.train.read(torch.arange(48)), data.train.labels)
    part = replace(data, train=images, ids=torch.arange(5, 37), test=None)
    result = train(make_network(), part, replace(config, objective="plain", epochs=1), world=ALONE)
    assert sorted(seen) == list(range(5, 37))
    assert math.isnan(result.last())
    assert result.epochs[0].images == 32


@pytest.mark.parametrize(("nesterov", "of_the_first_step"), [(True, 1.9), (False, 1.0)])
def test_the_optimiser_has_either_momentum_and_decay_on_every_parameter(
    nesterov: bool, of_the_first_step: float, data: TrainData, config: FinetuneConfig, make_network: Make
) -> None:
    config = replace(config, objective="plain", epochs=1, batch_size=48, momentum=0.9, weight_decay=0.1)
    config = replace(config, nesterov=nesterov)
    network = make_network()
    network[5].p = 0.0  # type: ignore[index]
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    train(network, replace(data, test=None), config, world=ALONE)
    for name, value in network.named_parameters():
        gradient = value.grad + 0.0
        momentum = gradient + config.weight_decay * before[name]
        # first step: buffer = g, update = g + 0.9 buffer, or without Nesterov the buffer
        expected = before[name] - config.learning_rate * of_the_first_step * momentum
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_rate_rises_with_every_step_of_the_first_epochs(
    data: TrainData, config: FinetuneConfig, make_network: Make
) -> None:
    config = replace(config, objective="plain", epochs=3, batch_size=12, warmup_epochs=2, milestones=(2,), decay=0.2)
    result = train(make_network(), replace(data, test=None), config, world=ALONE)
    assert [metrics.learning_rate for metrics in result.epochs] == pytest.approx([0.025, 0.05, 0.01])


def test_evaluation_uses_running_statistics_and_puts_the_mode_back(data: TrainData, make_network: Make) -> None:
    network = make_network().train()
    assert data.test is not None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whole = evaluate(network, data.test, data.normalisation, ALONE, batch_size=30)
    small = evaluate(network, data.test, data.normalisation, ALONE, batch_size=7)
    assert (whole.correct, whole.images) == (small.correct, 30)
    assert small.loss == pytest.approx(whole.loss, rel=1e-6)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_evaluation_every_few_epochs_always_includes_the_last(
    data: TrainData, config: FinetuneConfig, make_network: Make
) -> None:
    config = replace(config, objective="plain", evaluate_every=3)
    result = train(make_network(), data, config, world=ALONE)
    assert ["test_top1" in metrics.values for metrics in result.epochs] == [False, False, True, True]


def test_waiting_for_the_memory_bank_counts_and_reaches_the_table(
    data: TrainData, config: FinetuneConfig, make_network: Make, bank
) -> None:
    class SlowBank(TensorBank):
        def read(self, ids: torch.Tensor) -> BankRows:
            time.sleep(0.2)
            return super().read(ids)

    slow, once = SlowBank(bank.rows, bank.embeddings), replace(config, epochs=1, milestones=())
    (metrics,) = train(make_network(), data, once, world=ALONE, bank=slow).epochs
    assert 0.2 <= metrics.wait_seconds <= metrics.wall_seconds
    row = metrics.row(run="run", phase="finetune", network="slim", objective="ekg", test_images=9)
    assert row.wait_seconds == metrics.wait_seconds


def test_the_earliest_of_equally_good_epochs_is_the_best() -> None:
    def epoch(number: int, top1: float) -> EpochMetrics:
        values = {"loss": 1.0} if math.isnan(top1) else {"loss": 1.0, "test_top1": top1}
        given = dict.fromkeys(("learning_rate", "wall_seconds", "wait_seconds"), 0.0)
        return EpochMetrics(epoch=number, images=1, values=values, **given)

    epochs = (epoch(1, 80.0), epoch(2, 90.0), epoch(3, math.nan), epoch(4, 90.0), epoch(5, 80.0))
    result = TrainResult(epochs, Metric("top1"))
    assert result.best is not None
    assert (result.best.epoch, result.best_value, result.last()) == (2, 90.0, 80.0)
    lowest = TrainResult(epochs, Metric("top1", highest_is_best=False))
    assert lowest.best is not None
    assert (lowest.best.epoch, lowest.best_value) == (1, 80.0)
    assert result.epochs[2].row(run="r", phase="finetune", network="slim", objective="ekg", test_images=9).epoch == 3
    assert repr(EpochMetrics.from_dict(result.epochs[2].to_dict())) == repr(result.epochs[2])


def test_what_cannot_be_trained_is_refused(data: TrainData, config: FinetuneConfig, make_network: Make, bank) -> None:
    two = World(ALONE.device, 0, 2)
    cases = [
        ({}, {"bank": None}, "'ekg' distils from a memory bank, found none; build one"),
        ({"objective": "single"}, {}, "unpruned network, found none"),
        ({}, {"bank": replace(bank, rows=bank.rows[:9])}, "covers the 48 training images in use, found one of 9"),
        ({"batch_size": 1}, {"world": two}, "found micro-batches of 1 for 2 processes"),
        ({"batch_size": 49}, {}, "at most the 48 training images, found 49"),
        ({"batch_size": 4, "accumulate": 4}, {"world": two}, "found micro-batches of 1 for 2 processes"),
        ({"batch_size": 6, "accumulate": 2}, {"world": two}, "2 micro-batches x 2 processes divide, found 6"),
        ({"objective": "byol"}, {}, "'byol' needs to know the network's classifier"),
        (
            {"objective": "contrastive"},
            {"bank": replace(bank, embeddings=bank.embeddings[:, :0])},
            "needs a memory bank with embeddings, found one of logits only",
        ),
        ({"objective": "byol", "batch_size": 2}, {"world": two, "classifier": CLASSIFIER}, "at least 2 per process"),
        ({"objective": "contrastive", "batch_size": 15}, {"world": two, "classifier": CLASSIFIER}, "multiple of 2"),
    ]
    for settings, arguments, message in cases:
        with pytest.raises(JobError, match=message):
            train(make_network(), data, replace(config, **settings), **{"world": ALONE, "bank": bank} | arguments)
    with pytest.raises(NetworkError, match="makes the logits at '0', found Conv2d"):
        train(make_network(), data, replace(config, objective="byol"), world=ALONE, bank=bank, classifier="0")
    with pytest.raises(EkgError, match=r"rank of 0\.\.1, found 2"):
        World(ALONE.device, 2, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_smoothing", 1.0),
        ("average_last", 5),
        ("epochs", -1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("decay", 1.5),
        ("temperature", 0),
        ("momentum", 1),
    ],
)
def test_settings_out_of_range_are_refused(config: FinetuneConfig, field: str, value: float) -> None:
    with pytest.raises(JobError, match=f"expected {field} .*, found {value}"):
        replace(config, **{field: value})
    with pytest.raises(JobError, match="ascending"):
        replace(config, milestones=(5, 3))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    place = FolderCheckpoints(tmp_path / "new", num_kept=2)
    assert place.latest() is None
    for epoch in (1, 2, 3):
        place.save(lambda folder: (folder / "x").write_text("x"), {"epoch": epoch})  # type: ignore[arg-type, return-value]
    place.save(None, {"epoch": 4})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["epoch-000002", "epoch-000003"]
    latest = place.latest()
    assert latest is not None
    assert latest.name == "epoch-000003"


def test_a_checkpoint_cut_short_is_not_the_latest(tmp_path: Path) -> None:
    place = FolderCheckpoints(tmp_path)
    place.save(lambda folder: None, {"epoch": 1})

    def die(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KilledError

    with pytest.raises(KilledError):
        place.save(die, {"epoch": 2})
    latest = place.latest()
    assert latest is not None
    assert latest.name == "epoch-000001"
    place.save(lambda folder: None, {"epoch": 2})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["epoch-000001", "epoch-000002"]


def test_tensors_that_do_not_fit_name_the_folder(config: FinetuneConfig, make_network: Make, tmp_path: Path) -> None:
    write_checkpoint(start(make_network(), config, ALONE), {}, {"sums": torch.zeros(1, 2)}, tmp_path)
    with pytest.raises(NetworkError, match=f"{tmp_path} does not fit the network"):
        read_checkpoint(start(nn.Linear(2, 2), config, ALONE), {}, tmp_path, config, ALONE)


def test_a_training_that_stops_anywhere_ends_with_the_same_weights(
    make_network: Callable[[], nn.Module], data: TrainData, config: FinetuneConfig, tmp_path: Path
) -> None:
    """Before any step and any forward pass of an evaluation."""
    config = replace(config, objective="plain")
    asked: list[int] = []

    def weights(name: str, check: Callable[[], None]) -> dict[str, Tensor]:
        network = make_network()
        train(network, data, config, world=ALONE, checkpoint=FolderCheckpoints(tmp_path / name), check=check)
        return network.state_dict()

    expected = weights("whole", lambda: asked.append(0))
    num_steps, num_evaluations = 3 * config.epochs, config.epochs
    assert len(asked) == num_steps + num_evaluations
    for number in range(len(asked)):
        asked.clear()

        def stop(last: int = number) -> None:
            asked.append(0)
            if len(asked) > last:
                raise Stopped("now")

        with pytest.raises(Stopped):
            weights(f"stopped-{number}", stop)
        found = weights(f"stopped-{number}", lambda: None)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
