"""Kills within an epoch, losses that are no numbers, and averages of the weights."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.build import write_block
from ekgsearch.bank.commit import commit
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.norm import recalibrate
from ekgsearch.data.batching import epoch_order
from ekgsearch.data.subset import permutation
from ekgsearch.errors import JobError, NumericsError
from ekgsearch.finetune.average import WeightAverage, recalibrate_on
from ekgsearch.finetune.batches import loader_settings
from ekgsearch.finetune.checkpoints import FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import StepReport, TrainResult
from ekgsearch.finetune.resume import read_checkpoint, save_checkpoint
from ekgsearch.finetune.state import start
from ekgsearch.finetune.world import World
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.tensors import load_tensors

ALONE = World(torch.device("cpu"))
CLASSIFIER = "6"
WORKER = Path(__file__).with_name("kill_worker.py")
Make = Callable[[], nn.Module]

RESUMED = {"cpu": 0.0, "cuda": 1e-2}
"""Relative tolerance of the losses of a resumed training: a CPU gives the same bits, while kernels of a GPU may add in
another order each time, in numbers of three digits."""

EVERYTHING = {
    "ekg": {"accumulate": 2, "label_smoothing": 0.1},
    "contrastive": {"negatives": 40},
    "byol": {"ema_decay": 0.8, "average_last": 3, "recalibrate_images": 20},
}
"""Options under which more than the network has a state."""


class KilledError(Exception):
    """Stands for the end of a process."""


def numbers(result: TrainResult) -> list[str]:
    clocks = {"wall_seconds": 0.0, "wait_seconds": 0.0}
    return [repr(replace(metrics, **clocks)) for metrics in result.epochs]


def same(left: nn.Module, right: nn.Module) -> bool:
    other = right.state_dict()
    return all(torch.equal(value, other[name]) for name, value in left.state_dict().items())


@pytest.fixture
def small(config: FinetuneConfig) -> FinetuneConfig:
    return replace(config, batch_size=8, epochs=3, milestones=(2,), head_width=16, projection_width=8)


@pytest.mark.parametrize("objective", EVERYTHING)
@pytest.mark.parametrize("killed_at", [(1, 3), (3, 5)])
def test_a_training_killed_within_an_epoch_continues_to_the_same_bits(
    data: TrainData,
    small: FinetuneConfig,
    make_network: Make,
    bank,
    tmp_path: Path,
    objective: str,
    killed_at: tuple[int, int],
) -> None:
    config = replace(small, objective=objective, **EVERYTHING[objective])
    given = {"world": ALONE, "bank": bank, "classifier": CLASSIFIER}
    losses: dict[bool, dict[tuple[int, int], float]] = {True: {}, False: {}}

    def note(broken: bool, report: StepReport) -> None:
        assert report.loss is not None
        losses[broken][report.epoch, report.step] = float(report.loss)

    whole, resumed = make_network(), make_network()
    expected = train(whole, data, config, **given, on_step=lambda report: note(False, report))

    def kill(report: StepReport) -> None:
        note(True, report)
        if (report.epoch, report.step) == killed_at:
            raise KilledError

    place = {"checkpoint": FolderCheckpoints(tmp_path), "checkpoint_every_steps": 2}
    with pytest.raises(KilledError):
        train(make_network(), data, config, **given, **place, on_step=kill)
    kept = sorted(path.name for path in tmp_path.iterdir())[-1]
    assert kept == f"epoch-{killed_at[0] - 1:06d}-step-{killed_at[1] - 1:09d}"
    torch.manual_seed(99)  # the resumed process has other random numbers in its generators
    again: list[tuple[int, int]] = []

    def see(report: StepReport) -> None:
        note(True, report)
        again.append((report.epoch, report.step))

    result = train(resumed, data, config, **given, **place, on_step=see)
    assert again[0] == killed_at, "one step was lost, the one after the last checkpoint"
    assert losses[True] == losses[False]
    assert same(whole, resumed)
    assert numbers(result) == numbers(expected)
    assert all(same(network, expected.averages[name]) for name, network in result.averages.items())
    assert ("averaged" in result.averages) == (objective == "byol")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_training_in_bfloat16_continues_with_the_bank_of_its_device(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, tmp_path: Path, device: str
) -> None:
    EXACT.set_backends()
    config = replace(small, precision="bfloat16", channels_last=True)
    on_device = replace(data, train=data.train.to(device), test=data.test.to(device))
    spec = store_bank(bank, tmp_path / "store")

    def losses(
        place: FolderCheckpoints | None, killed_at: tuple[int, int] | None = None
    ) -> dict[tuple[int, int], float]:
        """Train as a new process would; losses by epoch and step."""
        found: dict[tuple[int, int], float] = {}

        def note(report: StepReport) -> None:
            assert report.loss is not None
            found[report.epoch, report.step] = float(report.loss)
            if (report.epoch, report.step) == killed_at:
                raise KilledError

        opened = MemoryBank.open(
            LocalStore(tmp_path / "store"), spec, cache_dir=tmp_path / "cache", device=device, resident=True
        )
        assert opened.is_resident == (device == "cuda")
        with suppress(KilledError):
            train(
                make_network().to(device),
                on_device,
                config,
                world=World(torch.device(device)),
                bank=opened,
                checkpoint=place,
                checkpoint_every_steps=2,
                on_step=note,
            )
        return found

    expected, place = losses(None), FolderCheckpoints(tmp_path / "checkpoints")
    before = losses(place, killed_at=(2, 5))
    after = losses(place)
    assert (max(before), min(after), max(after)) == ((2, 5), (2, 5), (3, 6)), "one step was lost"
    assert before | after == pytest.approx(expected, rel=RESUMED[device], abs=0)


def store_bank(bank, folder: Path) -> BankSpec:
    """Store the rows of a bank that is a tensor."""
    spec = BankSpec(
        dataset_hash="d",
        weights_hash="w",
        teachers=tuple("abcd"),
        num_images=len(bank),
        num_classes=bank.rows.shape[1],
        batch_size=8,
        batches_per_block=2,
        dtype="float32",
    )
    store = LocalStore(folder)
    for block, ids in enumerate(bank_layout(spec)):
        write_block(store, spec, block, BankRows(bank.rows[ids]))
    commit(store, spec)
    return spec


def test_no_result_depends_on_how_often_checkpoints_are_made(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, tmp_path: Path
) -> None:
    networks = [make_network(), make_network()]
    for every, network in enumerate(networks):
        place = FolderCheckpoints(tmp_path / str(every))
        train(network, data, small, world=ALONE, bank=bank, checkpoint=place, checkpoint_every_steps=every)
    assert same(*networks)


def test_momentum_keeps_the_memory_layout_of_its_parameter(
    small: FinetuneConfig, make_network: Make, tmp_path: Path
) -> None:
    config, place = replace(small, objective="plain", channels_last=True), FolderCheckpoints(tmp_path)
    before, after = (start(make_network(), config, ALONE) for _ in range(2))
    for parameter in before.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before.optimizer.step()
    with torch.random.fork_rng():
        save_checkpoint(place, before, {}, ALONE)
        latest = place.latest()
        assert latest is not None
        read_checkpoint(after, {}, latest, config, ALONE)
    for old, new in zip(before.model.parameters(), after.model.parameters(), strict=True):
        momentum = after.optimizer.state[new]["momentum_buffer"]
        assert momentum.stride() == new.stride() == old.stride()
        assert torch.equal(momentum, before.optimizer.state[old]["momentum_buffer"])
    assert not after.model[0].weight.is_contiguous()  # type: ignore[index]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, value: float
) -> None:
    config, before, network = replace(small, epochs=1, milestones=()), {}, make_network()
    bad = epoch_order(torch.arange(48), loader_settings(data, config, ALONE), 1)[3]
    bank.rows[bad[2]] = value

    def check(report: StepReport) -> None:
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        if report.step == 4:
            assert report.loss is None
            assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
        before.update(state)

    (epoch,) = train(network, data, config, world=ALONE, bank=bank, on_step=check).epochs
    assert (epoch.skipped_steps, epoch.images) == (1, 40)
    assert math.isfinite(epoch.loss)


def test_a_gradient_that_is_not_finite_is_skipped_like_a_loss(
    data: TrainData, small: FinetuneConfig, make_network: Make
) -> None:
    network = make_network()
    calls = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return gradient * math.inf if len(calls) in (2, 4) else gradient  # never two in a row

    network[6].weight.register_hook(spoil)  # type: ignore[index]
    config = replace(small, objective="plain", epochs=1, milestones=(), max_skipped=1)
    (epoch,) = train(network, data, config, world=ALONE).epochs
    assert epoch.skipped_steps == 2
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


class FailingBank:
    """A memory bank some of whose reads, counted from 1 over all epochs, bring no numbers."""

    def __init__(self, bank, failing: range) -> None:
        self.spec, self._bank, self._failing, self._reads = bank.spec, bank, failing, 0

    def __len__(self) -> int:
        return len(self._bank)

    def read(self, ids: torch.Tensor) -> BankRows:
        self._reads += 1
        rows = self._bank.read(ids)
        return BankRows(rows.logits * math.nan) if self._reads in self._failing else rows


def test_a_loss_that_is_finite_again_after_going_back_costs_nothing_but_time(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, tmp_path: Path
) -> None:
    config, whole, network = replace(small, max_skipped=1), make_network(), make_network()
    expected = train(whole, data, config, world=ALONE, bank=bank)
    failing = FailingBank(bank, range(9, 12))  # steps 3 to 5 of the second epoch, at its first attempt
    place, seen = FolderCheckpoints(tmp_path), []
    given = {"world": ALONE, "bank": failing, "checkpoint": place, "on_step": seen.append}
    result = train(network, data, config, **given)
    assert [(report.epoch, report.step) for report in seen if report.loss is None] == [(2, 3)]
    assert [(report.epoch, report.step) for report in seen[6:13]] == [
        (2, 1),
        (2, 2),
        (2, 3),
        *((2, n) for n in (1, 2, 3, 4)),
    ]
    assert same(whole, network)
    assert numbers(result) == numbers(expected)


def test_a_loss_that_stays_not_finite_goes_back_once_and_then_stops(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, config = FailingBank(bank, range(9, 10_000)), replace(small, max_skipped=1)
    message = r"epoch 2, step 2: expected a finite loss, found none on rank 0 of 1.*learning rate \(now 0.05\)"
    with pytest.raises(NumericsError, match=message):
        train(make_network(), data, config, world=ALONE, bank=failing, checkpoint=FolderCheckpoints(tmp_path))  # type: ignore[arg-type]
    told = [record.message for record in caplog.records if "went back to the last checkpoint" in record.message]
    assert len(told) == 1
    assert told[0].startswith("epoch 2, step 4:")


def test_an_average_is_the_mean_or_the_exponential_mean(make_network: Make) -> None:
    networks = [make_network() for _ in range(3)]
    for index, network in enumerate(networks):
        for value in network.state_dict().values():
            value.copy_(torch.full_like(value, index + 1))
    mean, moving = WeightAverage(networks[0]), WeightAverage(networks[0])
    for network in networks:
        mean.update(network, 1 / (mean.count + 1))
        moving.update(network, 1 - 0.9)
    expected = 0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 3.0
    for name, value in mean.network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.full_like(value, 2.0))
            torch.testing.assert_close(moving.network.state_dict()[name], torch.full_like(value, expected))
        else:
            assert value.item() == 3


def test_averages_of_a_training_are_those_of_its_epochs(
    data: TrainData, small: FinetuneConfig, make_network: Make
) -> None:
    config = replace(small, objective="plain", average_last=2, ema_decay=0.9)
    network, ends = make_network(), []
    moving = {name: value.detach().clone() for name, value in network.named_parameters()}

    def follow(_: object) -> None:
        for name, value in network.named_parameters():
            moving[name] = 0.9 * moving[name] + 0.1 * value.detach()

    end = ends.append
    result = train(network, data, config, world=ALONE, on_epoch=lambda _: end(copy.deepcopy(network)), on_step=follow)
    for name, value in result.averages["ema"].named_parameters():
        torch.testing.assert_close(value, moving[name])
    averaged = result.averages["averaged"]
    for name, value in averaged.named_parameters():
        both = [dict(end.named_parameters())[name].detach() for end in ends[1:]]
        torch.testing.assert_close(value, (both[0] + both[1]) / 2)
    assert data.test is not None
    for name in ("averaged", "ema"):
        assert evaluate(result.averages[name], data.test, data.normalisation, ALONE).top1 == result.last(name)
    assert ["averaged_top1" in epoch.values for epoch in result.epochs] == [False, False, True]
    before = {name: value.clone() for name, value in averaged.state_dict().items()}
    recalibrate_on(averaged, data, images=10_000, seed=config.seed)
    assert all(torch.equal(value, before[name]) for name, value in averaged.state_dict().items())


def test_recalibration_before_each_evaluation_changes_statistics_not_weights(
    data: TrainData, small: FinetuneConfig, make_network: Make
) -> None:
    config, data = replace(small, objective="plain", seed=3), replace(data, ids=torch.arange(0, 48, 2))
    without, network = make_network(), make_network()
    train(without, data, config, world=ALONE)
    train(network, data, replace(config, recalibrate_images=16), world=ALONE)
    parameters = dict(network.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in without.named_parameters())
    assert not torch.equal(without[1].running_mean, network[1].running_mean)  # type: ignore[index]
    expected = copy.deepcopy(network)
    recalibrate(expected, [data.normalisation(data.train.read(2 * permutation(24, 3, 0)[:16]))])
    torch.testing.assert_close(expected[1].running_mean, network[1].running_mean)  # type: ignore[index]


ACROSS_RANKS = {"objective": "byol", "synchronised_norm": True, "accumulate": 2}


@pytest.mark.parametrize(
    ("rank", "options"),
    [(1, ACROSS_RANKS), *(pytest.param(rank, {}, marks=pytest.mark.slow) for rank in (0, 1))],
)
def test_a_rank_killed_within_an_epoch_loses_time_only(tmp_path: Path, rank: int, options: dict[str, object]) -> None:
    whole = run_world(tmp_path / "whole", options)
    assert whole == [0, 0]
    codes = run_world(tmp_path / "broken", options, kill=rank)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] != 0, "nobody trains on alone"
    names = sorted(path.name for path in (tmp_path / "broken" / "checkpoints").glob("epoch-*"))
    assert names[-1].startswith("epoch-000001-step-")
    assert run_world(tmp_path / "broken", options) == [0, 0]
    for name in ("0.json", "1.json"):
        expected = json.loads((tmp_path / "whole" / name).read_text())
        found = json.loads((tmp_path / "broken" / name).read_text())
        assert found["epochs"] == expected["epochs"]
        assert found["steps"] == expected["steps"][-len(found["steps"]) :]
        assert 0 < len(found["steps"]) < len(expected["steps"])
    for file in ("final", "ema-0", "ema-1"):
        expected, found = (load_tensors(tmp_path / name / f"{file}.safetensors")[0] for name in ("whole", "broken"))
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    first, second = (load_tensors(tmp_path / "whole" / f"ema-{number}.safetensors")[0] for number in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def run_world(folder: Path, options: dict[str, object], kill: int | None = None) -> list[int]:
    """Train in two processes; SIGKILL one of them in the middle of the second epoch. Returns the exit codes."""
    folder.mkdir(exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    (folder / "reached").unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[2]), "OMP_NUM_THREADS": "1"}
    arguments = [[str(rank), str(folder), str(int(kill is not None)), json.dumps(options)] for rank in range(2)]
    workers = [
        subprocess.Popen([sys.executable, WORKER, *given], env=environment, stderr=subprocess.DEVNULL)
        for given in arguments
    ]
    try:
        if kill is not None:
            deadline = time.monotonic() + 200
            while not (folder / "reached").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            workers[kill].kill()
        return [worker.wait(timeout=200) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def test_a_batch_larger_than_the_data_is_refused(data: TrainData, small: FinetuneConfig, make_network: Make) -> None:
    part = replace(data, ids=torch.arange(7))
    with pytest.raises(JobError, match="at most the 7 training images, found 8"):
        train(make_network(), part, replace(small, objective="plain"), world=ALONE)
