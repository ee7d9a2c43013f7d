"""Accuracy of a network, or any other mean over a set of images, in running mode."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ekgsearch.data.datasets import ImageSet
from ekgsearch.data.encoded import DamagedImageError
from ekgsearch.data.views import Normalisation
from ekgsearch.finetune.world import World


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        correct: images whose highest logit is that of their label; of equal logits the lowest class counts.
        images: images evaluated.
        loss: mean cross-entropy, nats per image.
    """

    correct: int
    images: int
    loss: float

    @property
    def top1(self) -> float:
        """Accuracy, percent."""
        return 100.0 * self.correct / self.images


def evaluate(
    network: nn.Module,
    images: ImageSet,
    normalisation: Normalisation,
    world: World,
    *,
    batch_size: int = 500,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a classifier on all images; see `total_over` for the arguments and what is raised.

    Args:
        network: logits (N, classes) of images.
        images: un-augmented images with labels.
        normalisation: turns pixels into network input.
        world: this process.
        batch_size: images per forward pass.
        check: called before each forward pass; raises to stop there.
    """

    def right_and_loss(ids: Tensor, _inputs: Tensor, logits: Tensor) -> Tensor:
        labels = images.labels[ids.to(images.labels.device)].to(world.device)
        right = (logits.argmax(dim=1) == labels).sum()
        return torch.stack([right.double(), functional.cross_entropy(logits, labels, reduction="sum").double()])

    correct, loss = total_over(
        network, images, normalisation, world, right_and_loss, count=2, batch_size=batch_size, check=check
    )
    return Evaluation(int(correct), len(images), loss / len(images))


@torch.no_grad()
def total_over(
    network: nn.Module,
    images: ImageSet,
    normalisation: Normalisation,
    world: World,
    measure: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    count: int,
    batch_size: int = 500,
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """Add up what is measured of a network over all images, each process on its contiguous part.

    Normalisation layers use their running statistics, so the result does not depend on batches or processes; the
    network's mode is put back afterwards.

    A damaged training picture has a stand-in; one that is evaluated has none and is not left out either, since the
    result would be one over other images, to be compared with nothing. All processes raise alike, so that none waits
    for one that stopped.

    Args:
        network: on the device of this process.
        images: un-augmented images.
        normalisation: turns pixels into network input.
        world: this process.
        measure: called with ids (B,), network input (B, C, H, W) and outputs (B, ...), float32; gives sums (count,).
        count: numbers that are added up.
        batch_size: images per forward pass.
        check: called before each forward pass; raises to stop there.

    Returns:
        The sums over all images and processes.

    Raises:
        DamagedImageError: a picture is gone or has changed since it was verified; the process that read it names it.
    """
    was_training = network.training
    network.eval()
    part = torch.arange(len(images))[world.share(len(images))]
    sums = torch.zeros(count + 1, dtype=torch.float64, device=world.device)
    damage: DamagedImageError | None = None
    try:
        for ids in torch.split(part, batch_size):
            check()
            inputs = normalisation(images.read(ids).to(world.device))
            sums[:count] += measure(ids, inputs, network(inputs).float())
    except DamagedImageError as error:
        damage = error
        sums[count] = 1
    network.train(was_training)
    *found, stopped = world.sum(sums).tolist()
    if stopped:
        what = damage or f"{stopped:.0f} of {world.size} processes met a damaged picture, named in their messages"
        raise DamagedImageError(
            f"expected sound pictures to evaluate on, in whose place no other can stand: {what}; once it is restored, "
            "the same command goes on with this evaluation"
        ) from damage
    return found
