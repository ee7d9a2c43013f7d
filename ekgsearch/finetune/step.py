"""One training step: views, student, teacher targets, losses, gradients, update."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ekgsearch.errors import NumericsError
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.losses import losses
from ekgsearch.finetune.metrics import EpochMetrics
from ekgsearch.finetune.world import World


@dataclass
class TrainState:
    """Everything that a training step changes, and what a checkpoint holds.

    Attributes:
        model: the network itself.
        student: the same network as it is called: alone, or wrapped so that gradients are averaged over processes.
        optimizer: its optimiser.
        teacher: online teacher in evaluation mode, or None.
        history: the epochs that are done.
    """

    model: nn.Module
    student: nn.Module
    optimizer: torch.optim.SGD
    teacher: nn.Module | None = None
    history: list[EpochMetrics] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1."""
        return len(self.history) + 1


def start(model: nn.Module, config: FinetuneConfig, world: World, teacher: nn.Module | None) -> TrainState:
    """Place a network on its device and give it its optimiser.

    The optimiser is SGD with Nesterov momentum; the weight decay is added to the gradient of all parameters,
    normalisation and biases included (EKG, arXiv 2203.02651).
    """
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    model.to(world.device, memory_format=layout)  # type: ignore[call-overload]
    if teacher is not None:
        teacher.to(world.device, memory_format=layout)  # type: ignore[call-overload]
        teacher.eval()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=world.device.type == "cuda",
    )
    return TrainState(model, world.wrap(model), optimizer, teacher)


def train_step(
    state: TrainState, batch: Batch, data: TrainData, config: FinetuneConfig, world: World, *, step: int, rate: float
) -> dict[str, Tensor]:
    """Take one step on this process' part of a batch; changes the state.

    All views of a batch run through the network at once, so batch statistics cover them all.

    Args:
        state: network and optimiser.
        batch: images, labels and rows of the memory bank.
        data: names the normalisation.
        config: names objective and augmentation.
        world: this process.
        step: step within the epoch, from 1, for messages.
        rate: learning rate.

    Returns:
        The named losses of the part and `correct`, right answers per view summed over its images; all detached.

    Raises:
        NumericsError: a loss that is not finite, on any process; the network is left as it was.
    """
    views = batch.views(data, config, state.epoch)
    logits = _logits(state.student, views, config)
    target = None
    if state.teacher is not None:
        with torch.no_grad():
            target = _logits(state.teacher, views, config)
    bank = None if batch.bank is None else batch.bank.logits
    parts = losses(config, logits, batch.labels, bank=bank, teacher=target, reduce=world.sum)

    state.optimizer.zero_grad(set_to_none=True)
    share = len(batch.labels) * world.size / batch.global_size  # makes the mean over processes the mean over images
    torch.autograd.backward(parts["loss"] * share)
    _stop_unless_finite(parts, world, f"epoch {state.epoch}, step {step}", rate)
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = rate
    state.optimizer.step()

    measured = {name: value.detach() for name, value in parts.items()}
    measured["correct"] = (logits.detach().argmax(dim=-1) == batch.labels[:, None]).float().mean(dim=1).sum()
    return measured


def _logits(network: nn.Module, views: Tensor, config: FinetuneConfig) -> Tensor:
    """Run views (B, V, 3, H, W) as one batch; logits (B, V, C), float32."""
    images = views.flatten(0, 1)
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits: Tensor = network(images)
    return logits.float().view(*views.shape[:2], -1)


def _stop_unless_finite(parts: Mapping[str, Tensor], world: World, where: str, rate: float) -> None:
    """Tell all processes of a loss that is no number, so that all stop before the update and none waits for ever."""
    flags = torch.zeros(world.size, device=world.device)
    flags[world.rank] = (~torch.isfinite(parts["loss"].detach())).float()
    bad = world.sum(flags).nonzero().flatten().tolist()
    if not bad:
        return
    here = ", ".join(f"{name} {value.item():.6g}" for name, value in parts.items())
    raise NumericsError(
        f"{where}: expected a finite loss, found none on rank {', '.join(map(str, bad))} of {world.size} "
        f"(rank {world.rank} here: {here}); the update was not made; lower the learning rate (now {rate:g}) or check "
        "the weights the training starts from"
    )
