"""Content of a checkpoint, from which a killed training continues to the same bits."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ekgsearch.errors import NetworkError, ResumeError
from ekgsearch.finetune.checkpoints import CheckpointPort
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.metrics import EpochMetrics
from ekgsearch.finetune.state import Running, TrainState
from ekgsearch.finetune.synchronised_norm import has_norms
from ekgsearch.finetune.world import World
from ekgsearch.runtime.checkpoint import load_state, save_state
from ekgsearch.runtime.seeds import sub_seed

logger = logging.getLogger(__name__)

Facts = Mapping[str, Any]
"""What a training depends on, in plain values; a checkpoint of other facts is refused."""


def save_checkpoint(port: CheckpointPort, state: TrainState, facts: Facts, world: World) -> None:
    """Hand the state between two steps to a place for checkpoints; called by every process.

    The learning rate is a function of the step and of what the epochs before it measured, and the loader starts at any
    batch, so neither has a state of its own.
    """
    metrics: dict[str, float] = state.history[-1].to_dict() if state.history else {"epoch": 0}
    if state.running.step:
        metrics["step"] = state.running.step
    own = _gather_own(state, world)
    port.save(partial(write_checkpoint, state, facts, own) if world.rank == 0 else None, metrics)


def write_checkpoint(state: TrainState, facts: Facts, own: Mapping[str, Tensor], folder: Path) -> None:
    """Write the state of all processes.

    Args:
        state: of this process; but for running statistics, network, heads, optimiser and averages are the same on all.
        facts: what the training depends on.
        own: what each process has for itself, one row per process.
        folder: an existing folder.
    """
    running = asdict(state.running)
    del running["sums"]  # one row per process in `own`
    save_state(
        folder,
        {
            "facts": dict(facts),
            "model": state.model.state_dict(),
            "objective": state.objective.own_tensors(),
            "optimizer": state.optimizer.state_dict()["state"],
            "averages": {
                name: {"network": average.network.state_dict(), "count": average.count}
                for name, average in state.averages.items()
            },
            "history": [metrics.to_dict() for metrics in state.history],
            "running": running,
            "skipped_in_a_row": state.skipped_in_a_row,
            "own": dict(own),
        },
    )


def read_checkpoint(state: TrainState, facts: Facts, folder: Path, config: FinetuneConfig, world: World) -> None:
    """Put a state, and torch's random numbers, back to what a checkpoint holds.

    Args:
        state: changed in place.
        facts: what this training depends on.
        folder: filled by `write_checkpoint`.
        config: what decides the result.
        world: this process; there may be more or fewer than when the checkpoint was written.

    Raises:
        ResumeError: the checkpoint is of another training; the message names the differences.
        NetworkError: its tensors do not fit the network.
        StorageError: it is missing or damaged.
    """
    saved = load_state(folder)
    found = saved["facts"]
    differences = [
        f"{name}: this training has {facts.get(name)}, the checkpoint {found.get(name)}"
        for name in sorted({*facts, *found})
        if facts.get(name) != found.get(name)
    ]
    if differences:
        raise ResumeError(
            f"{folder} is a checkpoint of another training: {'; '.join(differences)}; "
            "run the job that it belongs to, or remove the folder to start anew"
        )
    try:
        state.model.load_state_dict(saved["model"])
        for name, average in state.averages.items():
            average.network.load_state_dict(saved["averages"][name]["network"])
            average.count = saved["averages"][name]["count"]
        _restore(state.objective.own_tensors(), saved["objective"])
    except (RuntimeError, KeyError) as error:
        raise NetworkError(
            f"{folder} does not fit the network that is to be trained: {error}; remove the folder to start anew"
        ) from error
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": saved["optimizer"], "param_groups": groups})
    _lay_out_like_parameters(state.optimizer)
    state.history[:] = [EpochMetrics.from_dict(values) for values in saved["history"]]
    state.skipped_in_a_row = saved["skipped_in_a_row"]
    state.running = Running(sums=Running.begin(state.objective).sums, **saved["running"])
    _restore_own(state, saved["own"], config, world)


def _lay_out_like_parameters(optimizer: torch.optim.SGD) -> None:
    """Give momentum the memory layout of its parameters, which fused SGD asks for; a file has only one layout."""
    for parameter, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            buffers[name] = torch.empty_like(parameter).copy_(buffer)


def _gather_own(state: TrainState, world: World) -> dict[str, Tensor]:
    """Collect what is not the same on all processes; one row per process.

    Running statistics, those of a moving average included, differ within an epoch where each process has its own batch
    statistics.
    """
    own = {"sums": world.gather(state.running.sums), "random": world.gather(torch.get_rng_state())}
    if world.device.type == "cuda":
        own["random_cuda"] = world.gather(torch.cuda.get_rng_state(world.device))
    if world.size > 1:
        own["statistics"] = world.gather(torch.cat([buffer.flatten() for buffer in _statistics(state)]))
    return own


def _restore_own(state: TrainState, own: Mapping[str, Tensor], config: FinetuneConfig, world: World) -> None:
    size = len(own["sums"])
    if size == world.size:
        state.running.sums = own["sums"][world.rank].to(world.device)
        torch.set_rng_state(own["random"][world.rank].clone())  # torch 2.15 crashes on a row that is not aligned
        if "random_cuda" in own and world.device.type == "cuda":
            torch.cuda.set_rng_state(own["random_cuda"][world.rank].clone(), world.device)
        statistics = own["statistics"][world.rank] if "statistics" in own else None
    else:
        if world.rank == 0:
            state.running.sums = own["sums"].sum(dim=0).to(world.device)
        torch.manual_seed(sub_seed(config.seed, "train", state.epoch, world.rank, state.running.step))
        statistics = own["statistics"].mean(dim=0) if "statistics" in own else None
        if world.rank == 0:
            _say_what_changes(state.model, config, size, world.size)
    if statistics is not None:
        buffers = _statistics(state)
        parts = torch.split(statistics, [buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def _say_what_changes(model: nn.Module, config: FinetuneConfig, before: int, now: int) -> None:
    effect = (
        "results stay equal up to rounding"
        if config.synchronised_norm or not has_norms(model)
        else (
            "each process has its own batch statistics, over other shares of a batch from here on, so the result is "
            "not that of an unbroken training"
        )
    )
    logger.warning("continuing on %d processes what %d began: %s", now, before, effect)


def _statistics(state: TrainState) -> list[Tensor]:
    buffers = [buffer for network in state.following for buffer in network.buffers() if buffer.is_floating_point()]
    return buffers or [torch.zeros(0)]


@torch.no_grad()
def _restore(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Put tensors back to what a checkpoint holds.

    Raises:
        RuntimeError: names or shapes differ.
    """
    if own.keys() != saved.keys():
        raise RuntimeError(f"expected {sorted(own)}, found {sorted(saved)}")
    for name, value in own.items():
        value.copy_(saved[name])


def state_hash(model: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and buffers and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
