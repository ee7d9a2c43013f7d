"""Accuracy of a network on a set of images, in running mode."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn

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


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageSet,
    normalisation: Normalisation,
    world: World,
    *,
    batch_size: int = 500,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a network on all images, each process on its contiguous part.

    Normalisation layers use their running statistics, so the result does not depend on batches or processes; the
    network's mode is put back afterwards.

    A damaged training picture has a stand-in; one that is evaluated has none and is not left out either, since the
    accuracy would be one over other images, to be compared with nothing. All processes raise alike, so that none waits
    for one that stopped.

    Args:
        network: on the device of this process.
        images: un-augmented images with labels.
        normalisation: turns pixels into network input.
        world: this process.
        batch_size: images per forward pass.
        check: called before each forward pass; raises to stop there.

    Raises:
        DamagedImageError: a picture is gone or has changed since it was verified; the process that read it names it.
    """
    was_training = network.training
    network.eval()
    part = torch.arange(len(images))[world.share(len(images))]
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    damage: DamagedImageError | None = None
    try:
        for ids in torch.split(part, batch_size):
            check()
            labels = images.labels[ids.to(images.labels.device)].to(world.device)
            logits = network(normalisation(images.read(ids).to(world.device))).float()
            sums[0] += (logits.argmax(dim=1) == labels).sum()
            sums[1] += functional.cross_entropy(logits, labels, reduction="sum")
    except DamagedImageError as error:
        damage = error
        sums[2] = 1
    network.train(was_training)
    correct, loss, stopped = world.sum(sums).tolist()
    if stopped:
        what = damage or f"{stopped:.0f} of {world.size} processes met a damaged picture, named in their messages"
        raise DamagedImageError(
            f"expected sound pictures to evaluate on, in whose place no other can stand: {what}; once it is restored, "
            "the same command goes on with this evaluation"
        ) from damage
    return Evaluation(int(correct), len(images), loss / len(images))
