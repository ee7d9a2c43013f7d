"""One training step: teachers, student, losses, gradients, update."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ekgsearch.errors import NumericsError
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.state import TrainState
from ekgsearch.finetune.world import World


def train_step(
    state: TrainState, batch: Batch, config: FinetuneConfig, world: World, *, rate: float, num_steps: int
) -> Tensor:
    """Take one step on this process' part of a batch; changes the state.

    Args:
        state: network, heads and optimiser.
        batch: views, labels and rows of the memory bank.
        config: what decides the result.
        world: this process.
        rate: learning rate.
        num_steps: steps of an epoch.

    Returns:
        Sums over the images of the part: what `Objective.names` lists, replaced images, images; float64.

    Raises:
        NumericsError: a loss or gradient that is not finite, on any process; network and heads are left as they were.
    """
    buffers = list(state.objective.buffers())
    before = [buffer.clone() for buffer in buffers]
    state.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros_like(state.running.sums)
    parts = batch.micro_batches(config.accumulate)
    for number, part in enumerate(parts, start=1):
        with world.exchanging_gradients(state.parallel, number == len(parts)):
            sums += _backward(state, part, world)
    try:
        _check_finite(state, sums, world, rate)
    except NumericsError:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate
    state.optimizer.step()
    state.objective.after_step((state.epoch - 1) * num_steps + state.running.step, config.epochs * num_steps)
    if "ema" in state.averages:
        state.averages["ema"].update(state.model, 1 - config.ema_decay)
    return sums


def _backward(state: TrainState, batch: Batch, world: World) -> Tensor:
    """Add the gradients of a micro-batch; returns its sums."""
    objective, images = state.objective, batch.num_images
    parts, outputs = state.parallel(batch, objective.targets(batch))
    share = images * world.size / batch.global_size  # makes the mean over processes the mean over images
    torch.autograd.backward(parts["loss"] * share)
    means = torch.stack([parts[name].detach().double() for name in objective.parts])
    counts = objective.count(outputs.detach(), batch)
    replaced, seen = (means.new_full((1,), number) for number in (batch.replaced, images))
    return torch.cat([means * images, counts, replaced, seen])


def _check_finite(state: TrainState, sums: Tensor, world: World, rate: float) -> None:
    """Tell all processes of a loss or gradient that is no number, so that all act alike and none waits for ever."""
    gradients = [value.grad for value in state.objective.parameters() if value.grad is not None]
    flags = torch.zeros(2, world.size, device=world.device)
    flags[0, world.rank] = (~torch.isfinite(sums[0])).float()
    flags[1, world.rank] = (~torch.isfinite(_total_norm(gradients))).float()
    of_losses, of_gradients = world.sum(flags).tolist()
    if not any(of_losses) and not any(of_gradients):
        return
    what = "loss" if any(of_losses) else "gradient"
    bad = [rank for rank, flag in enumerate(of_losses if any(of_losses) else of_gradients) if flag]
    images = max(1.0, sums[-1].item())
    parts = zip(state.objective.parts, sums.tolist(), strict=False)
    here = ", ".join(f"{name} {value / images:.6g}" for name, value in parts)
    raise NumericsError(
        f"epoch {state.epoch}, step {state.running.step + 1}: expected a finite {what}, found none on rank "
        f"{', '.join(map(str, bad))} of {world.size} (rank {world.rank} here: {here}); the update was not made; lower "
        f"the learning rate (now {rate:g}) or check the weights the training starts from"
    )


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Sum of the norms of all gradients: finite exactly where all of them are, short of overflow."""
    return torch.stack(torch._foreach_norm(list(gradients))).sum()
