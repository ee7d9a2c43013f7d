"""The training loop; it serves pre-training, warm-up, fine-tuning with teachers and every baseline."""

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.errors import JobError
from ekgsearch.finetune.batches import epoch_order, read_epoch
from ekgsearch.finetune.checkpoints import CheckpointPort, Facts, read_checkpoint, save_epoch
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.losses import LOSS_NAMES
from ekgsearch.finetune.metrics import EpochMetrics, TrainResult
from ekgsearch.finetune.step import TrainState, start, train_step
from ekgsearch.finetune.world import World
from ekgsearch.maths.schedules import step_decay
from ekgsearch.records import content_hash
from ekgsearch.runtime.seeds import sub_seed

logger = logging.getLogger(__name__)


def train(
    model: nn.Module,
    data: TrainData,
    config: FinetuneConfig,
    *,
    world: World,
    bank: MemoryBank | None = None,
    teacher: nn.Module | None = None,
    checkpoint: CheckpointPort | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Train a network in place, from the newest checkpoint if there is one.

    Every process of the world calls this with the same arguments, `world` apart. On one CPU an interrupted and resumed
    training ends with the same bits as an uninterrupted one.

    Args:
        model: network to train; changed in place, left in evaluation mode.
        data: images, and which of them.
        config: what decides the result.
        world: this process.
        bank: memory bank of the training images, for the objective `ekg`.
        teacher: unpruned network, for the objective `single`; used in running mode.
        checkpoint: where each epoch is kept; None for a training short enough to repeat.
        on_epoch: called on every process after each epoch is kept; not for epochs before a resume.
        on_step: called after each step with the images of the global batch.

    Returns:
        The measurements of all epochs, those before a resume included.

    Raises:
        JobError: the objective lacks its teacher, or there are fewer images in a batch than processes.
        NumericsError: a loss that is not finite; the message names epoch, step and rank.
        ResumeError: the checkpoint belongs to another training.
    """
    _check(data, config, world, bank, teacher)
    facts = _facts(model, data, config, bank)
    state = start(model, config, world, teacher if config.objective == "single" else None)
    latest = None if checkpoint is None else checkpoint.latest()
    if latest is not None:
        read_checkpoint(state, facts, latest)
        logger.info("continuing after epoch %d of %d from %s", len(state.history), config.epochs, latest)
    _log_arithmetic(data, config, world)
    cuda = [world.device.index or 0] if world.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        while state.epoch <= config.epochs:
            torch.manual_seed(sub_seed(config.seed, "train", state.epoch, world.rank))
            metrics = _run_epoch(state, data, config, bank=bank, world=world, on_step=on_step)
            state.history.append(metrics)
            if checkpoint is not None:
                save_epoch(checkpoint, state, facts, is_writer=world.rank == 0)
            if on_epoch is not None:
                on_epoch(metrics)
    model.eval()
    return TrainResult(tuple(state.history))


def _run_epoch(
    state: TrainState,
    data: TrainData,
    config: FinetuneConfig,
    *,
    bank: MemoryBank | None,
    world: World,
    on_step: Callable[[int], None] | None,
) -> EpochMetrics:
    """Take all steps of one epoch, then evaluate."""
    begin = time.monotonic()
    epoch, steps = state.epoch, len(epoch_order(data, config, state.epoch))
    bank = bank if config.objective == "ekg" else None
    sums = torch.zeros(len(LOSS_NAMES) + 2, dtype=torch.float64, device=world.device)
    rate, waited = math.nan, 0.0
    state.student.train()
    for step, batch in enumerate(read_epoch(data, config, epoch, bank=bank, world=world), start=1):
        rate = learning_rate(config, epoch - 1 + (step - 1) / steps)
        measured = train_step(state, batch, data, config, world, step=step, rate=rate)
        sums += _weighted(measured, len(batch.labels))
        waited += batch.wait_seconds
        if on_step is not None:
            on_step(batch.global_size)
    *losses, correct, images = world.sum(sums).tolist()
    world.average_statistics(state.model)
    test_top1 = math.nan
    if data.test is not None and (epoch % config.evaluate_every == 0 or epoch == config.epochs):
        test_top1 = evaluate(state.model, data.test, data.normalisation, world).top1
    return EpochMetrics(
        epoch=epoch,
        learning_rate=rate,
        **{name: total / images for name, total in zip(LOSS_NAMES, losses, strict=True)},
        train_top1=100.0 * correct / images,
        test_top1=test_top1,
        images=int(images),
        wall_seconds=time.monotonic() - begin,
        wait_seconds=waited,
    )


def learning_rate(config: FinetuneConfig, progress: float) -> float:
    """Learning rate after so many epochs, fractions included."""
    return step_decay(
        progress,
        base=config.learning_rate,
        milestones=config.milestones,
        decay=config.decay,
        warmup_epochs=config.warmup_epochs,
    )


def _weighted(measured: dict[str, Tensor], images: int) -> Tensor:
    """Turn the means of a step into sums over its images, followed by the right answers and the images."""
    means = torch.stack([measured[name].double() for name in LOSS_NAMES]) * images
    correct = measured["correct"].double().reshape(1)
    return torch.cat([means, correct, torch.full_like(correct, images)])


def _check(
    data: TrainData, config: FinetuneConfig, world: World, bank: MemoryBank | None, teacher: nn.Module | None
) -> None:
    """Refuse what would fail after the first expensive step."""
    if config.objective == "ekg" and bank is None:
        raise JobError("objective 'ekg' distils from a memory bank, found none; build one and pass it")
    if config.objective == "single" and teacher is None:
        raise JobError("objective 'single' distils from the unpruned network, found none; pass it as the teacher")
    if bank is not None and len(bank) != len(data.train):
        raise JobError(
            f"expected a memory bank of the {len(data.train)} training images, found one of {len(bank)}; build it anew"
        )
    images = len(data.train) if data.ids is None else len(data.ids)
    if min(images, config.batch_size) < world.size:
        raise JobError(
            f"expected at least one image per process and step, found batches of {min(images, config.batch_size)} for "
            f"{world.size} processes; raise the batch size or use fewer processes"
        )


def _facts(model: nn.Module, data: TrainData, config: FinetuneConfig, bank: MemoryBank | None) -> Facts:
    """Collect what the result depends on, for the comparison with a checkpoint.

    The number of processes is left out: a training may continue on fewer devices.
    """
    facts = {f"config.{name}": value for name, value in _plain(dataclasses.asdict(config)).items()}
    facts["initial weights"] = _state_hash(model)
    facts["train images"] = data.train.content_hash
    facts["train ids"] = "all" if data.ids is None else content_hash(data.ids.tolist())
    facts["memory bank"] = None if bank is None or config.objective != "ekg" else bank.spec.sha256
    return facts


def _state_hash(model: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and buffers and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: object) -> dict[str, object]:
    """Flatten nested settings to texts and numbers."""
    assert isinstance(value, dict)
    flat: dict[str, object] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat.update({f"{name}.{inner}": content for inner, content in _plain(item).items()})
        else:
            flat[name] = item
    return flat


def _log_arithmetic(data: TrainData, config: FinetuneConfig, world: World) -> None:
    """Say once, in words, how images become steps."""
    if world.rank == 0:
        images = len(data.train) if data.ids is None else len(data.ids)
        logger.info(
            "training (%s) for %d epochs: %d images x %d views, %d steps of %d images over %d processes",
            config.objective,
            config.epochs,
            images,
            config.num_views,
            max(1, images // config.batch_size),
            min(images, config.batch_size),
            world.size,
        )
