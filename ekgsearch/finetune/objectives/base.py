"""The contract of an objective: all that the training loop asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ekgsearch.data.datasets import ImageSet
from ekgsearch.data.views import Normalisation
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.metrics import EpochMetrics, Metric
from ekgsearch.finetune.student import Student
from ekgsearch.finetune.world import World
from ekgsearch.maths.schedules import step_decay


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an objective is made of.

    Attributes:
        student: the network that learns, on the device of the world.
        config: what decides the result.
        world: this process.
        teacher: outputs (B, V, ...) of the unpruned network on views (B, V, C, H, W), without a gradient; None where
            the objective needs none.
        teacher_width: features of an embedding in the memory bank; 0 where the objective needs none.
    """

    student: Student
    config: FinetuneConfig
    world: World
    teacher: Callable[[Tensor], Tensor] | None = None
    teacher_width: int = 0


class Objective(nn.Module, ABC):
    """Student, heads and losses: the one module whose gradients are averaged over processes.

    An objective owns the named parts of its loss, its targets, its metric, its learning rate, and what it does after a
    step. The loop knows none of them: it calls the methods here in turn.

    Attributes:
        parts: names of what the forward pass measures, means over the images; `loss`, the first, is minimised.
        counts: names of what is counted besides, of outputs and labels; see `count`.
        metric: the number that a network is judged by on the test images.
        student: the network that learns.
        given: what it was made of.
        followers: networks by name that give targets and learn by no gradient. They are no part of the module, so that
            gradients, optimiser and modes pass them by; a checkpoint holds them.
    """

    parts: ClassVar[tuple[str, ...]]
    counts: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[Metric]

    def __init__(self, given: Given) -> None:
        """Put an objective together; subclasses make their heads and followers here, on the device of the world."""
        super().__init__()
        self.given = given
        self.student = given.student
        self.followers: dict[str, nn.Module] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What every step measures, in the order of the vector that the loop adds up."""
        return (*self.parts, *self.counts)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Make what the losses compare with, before the forward pass and without a gradient."""
        return {}

    @abstractmethod
    def forward(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a micro-batch.

        Args:
            batch: views, and of labels and rows of the memory bank what the objective needs.
            targets: what `targets` made of the same batch.

        Returns:
            Scalars under `parts`, means over the images; and the student's outputs (B, V, ...).
        """

    def count(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Count over the images of a micro-batch what `counts` names: float64, one number for each."""
        return torch.zeros(len(self.counts), dtype=torch.float64, device=outputs.device)

    def after_step(self, done: int, num_steps: int) -> None:
        """Do what follows a step of the optimiser.

        Args:
            done: steps of the training before this one, over all epochs.
            num_steps: steps of the whole training.
        """

    def learning_rate(self, progress: float, history: Sequence[EpochMetrics]) -> float:
        """Learning rate of a step: that of the configuration, which drops at its milestones.

        The loop lets it rise over the first epochs (`FinetuneConfig.warmup_epochs`), by a factor on this answer.
        It is a function of what is known before the step, so that a resumed training goes on with the same rate.

        Args:
            progress: epochs done before the step, fractions included.
            history: what the epochs that are done measured, the metric where it was evaluated.
        """
        config = self.given.config
        return step_decay(progress, base=config.learning_rate, milestones=config.milestones, decay=config.decay)

    @abstractmethod
    def measure(
        self, network: nn.Module, images: ImageSet, normalisation: Normalisation, check: Callable[[], None]
    ) -> float:
        """Measure the metric of a network on images, the same on all processes.

        Args:
            network: the one that is trained, or an average of its weights.
            images: un-augmented images.
            normalisation: turns pixels into network input.
            check: called before each forward pass; raises to stop there.
        """

    def own_tensors(self) -> dict[str, Tensor]:
        """All tensors besides the network's, by name, that a checkpoint holds.

        Those that a state dict leaves out are included: a queue of past projections is no result, but part of the
        state.
        """
        mine = {
            name: value
            for name, value in (*self.named_parameters(), *self.named_buffers())
            if not name.startswith("student.")
        }
        return mine | {
            f"followers.{follower}.{name}": value
            for follower, module in self.followers.items()
            for name, value in (*module.named_parameters(), *module.named_buffers())
        }
