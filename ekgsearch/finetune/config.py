"""What decides the result of a training phase, and the data it reads."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ekgsearch.data.datasets import ImageSet
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.errors import JobError
from ekgsearch.maths.distillation import TeacherGate

Objective = Literal["plain", "single", "ekg"]
"""Cross-entropy on one view; distillation from the unpruned network; distillation from the memory bank."""

Precision = Literal["float32", "bfloat16"]
"""Arithmetic of forward and backward passes; bfloat16 is autocast, an approximation, weights stay float32."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a network is trained; the defaults are those of EKG (arXiv 2203.02651) for fine-tuning on CIFAR.

    Attributes:
        objective: what the network is pulled towards.
        epochs: passes over the training ids.
        batch_size: images per optimiser step over all processes; an image with two views counts once.
        learning_rate: rate before the first milestone.
        milestones: epochs after whose end the rate is multiplied by `decay`.
        decay: factor of one drop.
        warmup_epochs: linear rise of the rate at the start, in epochs.
        momentum: Nesterov momentum.
        weight_decay: L2 factor on all parameters, those of normalisation layers and biases included.
        temperature: softening of the distillation; 4 below 1000 classes, 10 for 1000.
        teacher_gate: how teachers worse than the student are left out.
        augmentation: how views are made.
        seed: seed of the order of images, the views and dropout.
        shuffle: whether the images come in a new order in every epoch; off, they come in the order of the ids.
        evaluate_every: epochs between evaluations on the test set; the last epoch is always evaluated.
        precision: arithmetic of forward and backward passes.
        channels_last: whether images and weights are laid out channels last, faster on GPUs.
    """

    objective: Objective = "ekg"
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.01
    milestones: tuple[int, ...] = (30, 60, 80)
    decay: float = 0.2
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 4.0
    teacher_gate: TeacherGate = "kl_to_top"
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 1
    shuffle: bool = True
    evaluate_every: int = 1
    precision: Precision = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            JobError: a value outside its range, with the range.
        """
        ranges = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "decay": (0 < self.decay <= 1, "above 0 and at most 1"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "0 or more and below 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "temperature": (self.temperature > 0, "above 0"),
            "evaluate_every": (self.evaluate_every >= 1, "1 or more"),
        }
        for name, (holds, expected) in ranges.items():
            if not holds:
                raise JobError(f"training: expected {name} {expected}, found {getattr(self, name)}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise JobError(f"training: expected milestones in ascending order, found {self.milestones}")

    @property
    def num_views(self) -> int:
        """Views per image: one without a teacher, two that meet in one target with a teacher."""
        return 1 if self.objective == "plain" else 2


@dataclass(frozen=True)
class TrainData:
    """The images of a training phase.

    Attributes:
        train: training images.
        normalisation: turns pixels into network input.
        test: images that are evaluated, in running mode; None for no evaluation.
        ids: ids of the training images that are used, int64; None for all.
    """

    train: ImageSet
    normalisation: Normalisation
    test: ImageSet | None = None
    ids: Tensor | None = None
