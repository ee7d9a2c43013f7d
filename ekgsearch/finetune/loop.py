"""The training loop; it serves pre-training, warm-up, fine-tuning with teachers and every baseline."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.data.loader import Loader
from ekgsearch.errors import NumericsError
from ekgsearch.finetune.average import RECALIBRATION_IMAGES, recalibrate_on
from ekgsearch.finetune.batches import open_batches, read_epoch
from ekgsearch.finetune.checkpoints import CheckpointPort
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.metrics import EpochMetrics, StepReport, TrainResult
from ekgsearch.finetune.objectives.base import Objective
from ekgsearch.finetune.preflight import arithmetic, facts_of
from ekgsearch.finetune.preflight import check as check_inputs
from ekgsearch.finetune.resume import Facts, read_checkpoint, save_checkpoint
from ekgsearch.finetune.state import Running, TrainState, start
from ekgsearch.finetune.step import train_step
from ekgsearch.finetune.world import World
from ekgsearch.maths.schedules import linear_rise
from ekgsearch.runtime.seeds import sub_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What does not change during a training."""

    data: TrainData
    config: FinetuneConfig
    world: World
    loader: Loader
    bank: MemoryBank | None
    facts: Facts
    checkpoint: CheckpointPort | None
    checkpoint_every_steps: int
    on_step: Callable[[StepReport], None] | None
    check: Callable[[], None]


def train(
    model: nn.Module,
    data: TrainData,
    config: FinetuneConfig,
    *,
    world: World,
    bank: MemoryBank | None = None,
    teacher: nn.Module | None = None,
    classifier: str | None = None,
    checkpoint: CheckpointPort | None = None,
    checkpoint_every_steps: int = 0,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    on_continue: Callable[[Sequence[EpochMetrics]], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Train a network in place, from the newest checkpoint if there is one.

    Every process of the world calls this with the same arguments, `world` apart. On CPUs an interrupted and resumed
    training ends with the same bits as an uninterrupted one, wherever it was interrupted.

    Args:
        model: network to train; changed in place, left in evaluation mode, without the heads of an objective.
        data: images, and which of them.
        config: what decides the result.
        world: this process.
        bank: memory bank of the training images, for an objective that needs it.
        teacher: unpruned network, for an objective that needs it; used in running mode.
        classifier: path of the linear layer whose input is the embedding, for an objective that needs embeddings.
        checkpoint: where the state is kept after each epoch, and before it is evaluated, so that an evaluation that
            fails costs no step; None for a training short enough to repeat.
        checkpoint_every_steps: steps between two checkpoints within an epoch; 0 for none. No result depends on it.
        on_epoch: called on every process after each epoch is kept; not for epochs before a resume.
        on_step: called after each step.
        on_continue: called on every process with the epochs before a resume, where there is one.
        check: called before each step and each forward pass of an evaluation; raises to stop there.

    Returns:
        The measurements of all epochs, those before a resume included, and the networks of averaged weights.

    Raises:
        JobError: the objective lacks its teacher, or batches and processes do not fit.
        NumericsError: losses or gradients that are not finite, also after going back to the last checkpoint; the
            message names epoch, step and rank.
        ResumeError: the checkpoint belongs to another training.
        DataError: more training pictures are damaged than allowed, or a test picture is (see `evaluate`).
    """
    check_inputs(data, config, world, bank, teacher, classifier)
    training = _Training(
        data=data,
        config=config,
        world=world,
        loader=open_batches(data, config, world),
        bank=bank if config.needs.bank else None,
        facts=facts_of(model, data, config, bank, classifier),
        checkpoint=checkpoint,
        checkpoint_every_steps=checkpoint_every_steps,
        on_step=on_step,
        check=check,
    )
    state = start(
        model,
        config,
        world,
        teacher=teacher if config.needs.teacher else None,
        classifier=classifier,
        teacher_width=bank.spec.embeddings if bank is not None and config.needs.embeddings else 0,
    )
    cuda = [world.device.index or 0] if world.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda):
            if _continue(state, training) and on_continue is not None:
                on_continue(tuple(state.history))
            if world.rank == 0:
                logger.info("%s", arithmetic(data, config, world))
            _run_epochs(state, training, on_epoch)
    finally:
        state.release()
    averages = {name: average.network for name, average in state.averages.items()}
    return TrainResult(tuple(state.history), state.objective.metric, averages)


def _continue(state: TrainState, training: _Training) -> bool:
    """Go to the newest checkpoint; returns whether there is one."""
    latest = None if training.checkpoint is None else training.checkpoint.latest()
    if latest is None:
        return False
    read_checkpoint(state, training.facts, latest, training.config, training.world)
    where = f" and {state.running.step} steps" if state.running.step else ""
    logger.info("continuing after epoch %d%s of %d from %s", len(state.history), where, training.config.epochs, latest)
    return True


def _run_epochs(state: TrainState, training: _Training, on_epoch: Callable[[EpochMetrics], None] | None) -> None:
    """Take all epochs that are left; from a loss that stays not finite, go back to the last checkpoint."""
    rollbacks = 0
    while state.epoch <= training.config.epochs:
        try:
            metrics = _run_epoch(state, training)
        except NumericsError as error:
            if rollbacks == training.config.max_rollbacks or not _continue(state, training):
                raise
            rollbacks += 1
            logger.warning("%s; went back to the last checkpoint, for the %d. time", error, rollbacks)
            continue
        state.history.append(metrics)
        state.running = Running.begin(state.objective)
        if training.checkpoint is not None:
            save_checkpoint(training.checkpoint, state, training.facts, training.world)
        if on_epoch is not None:
            on_epoch(metrics)


def _run_epoch(state: TrainState, training: _Training) -> EpochMetrics:
    """Take all steps of one epoch that are left, keep their result, then evaluate."""
    config, world, running = training.config, training.world, state.running
    begin, begun_with = time.monotonic() - running.seconds, running.step
    num_steps = len(training.loader)
    if running.step == 0:
        torch.manual_seed(sub_seed(config.seed, "train", state.epoch, world.rank))
    state.parallel.train()
    for batch in read_epoch(training.loader, state.epoch, bank=training.bank, start=running.step):
        training.check()
        progress = state.epoch - 1 + running.step / num_steps
        rise = linear_rise(state.epoch - 1 + (running.step + 1) / num_steps, epochs=config.warmup_epochs)
        running.learning_rate = rise * state.objective.learning_rate(progress, state.history)
        loss = None
        try:
            sums = train_step(state, batch, config, world, rate=running.learning_rate, num_steps=num_steps)
        except NumericsError as error:
            _skip(state, config, error)
        else:
            running.sums += sums
            loss = sums[0] / sums[-1]
            state.skipped_in_a_row = 0
        running.step += 1
        running.waited += batch.wait_seconds
        running.seconds = time.monotonic() - begin
        if training.on_step is not None:
            training.on_step(StepReport(state.epoch, running.step, batch.global_size, loss))
        due = training.checkpoint_every_steps and running.step % training.checkpoint_every_steps == 0
        if training.checkpoint is not None and due and running.step < num_steps:
            save_checkpoint(training.checkpoint, state, training.facts, world)
    seen = world.sum(running.sums).tolist()
    if not seen[-1]:
        raise NumericsError(f"epoch {state.epoch}: expected a step with a finite loss, found {running.skipped} without")
    is_tested = training.data.test is not None and _is_evaluated(state.epoch, config)
    if training.checkpoint is not None and is_tested and running.step > begun_with:
        save_checkpoint(training.checkpoint, state, training.facts, world)
    if not config.synchronised_norm:
        for network in state.following:
            world.average_statistics(network)
    return _measure(state, training, seen, begin)


def _skip(state: TrainState, config: FinetuneConfig, error: NumericsError) -> None:
    """Count a step that was not made.

    Raises:
        NumericsError: too many in a row.
    """
    state.running.skipped += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row > config.max_skipped:
        raise error
    logger.warning("%s; step skipped (%d in a row of %d)", error, state.skipped_in_a_row, config.max_skipped)


def _is_evaluated(epoch: int, config: FinetuneConfig) -> bool:
    return epoch == config.epochs or epoch % config.evaluate_every == 0


def _measure(state: TrainState, training: _Training, seen: list[float], begin: float) -> EpochMetrics:
    """Evaluate, and put what an epoch saw over all processes into words."""
    config, running = training.config, state.running
    *totals, replaced, images = seen
    is_last = state.epoch == config.epochs
    if state.epoch > config.epochs - config.average_last:
        average = state.averages["averaged"]
        average.update(state.model, 1 / (average.count + 1))
    values = {name: total / images for name, total in zip(state.objective.names, totals, strict=True)}
    if _is_evaluated(state.epoch, config):
        networks = {"test": state.model, **{name: average.network for name, average in state.averages.items()}}
        if not is_last:
            networks.pop("averaged", None)
        for name, network in networks.items():
            values[state.objective.metric.of(name)] = _evaluate(name, network, state.objective, training)
    return EpochMetrics(
        epoch=state.epoch,
        learning_rate=running.learning_rate,
        images=int(images),
        replaced_images=int(replaced),
        skipped_steps=running.skipped,
        wall_seconds=time.monotonic() - begin,
        wait_seconds=running.waited,
        values={name: value for name, value in values.items() if not math.isnan(value)},
    )


def _evaluate(name: str, network: nn.Module, objective: Objective, training: _Training) -> float:
    """The metric on the test set; NaN without one. Recalibrates the network where that is asked for."""
    data, config = training.data, training.config
    images = config.recalibrate_images or (RECALIBRATION_IMAGES if name == "averaged" else 0)
    if images:
        recalibrate_on(network, data, images=images, seed=config.seed, check=training.check)
    if data.test is None:
        return math.nan
    return objective.measure(network, data.test, data.normalisation, training.check)
