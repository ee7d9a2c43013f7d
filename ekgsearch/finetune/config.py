"""Settings that decide the result of a training, and the data it reads."""

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ekgsearch.data.datasets import ImageSet
from ekgsearch.data.loader import LoaderName
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.errors import JobError
from ekgsearch.finetune.objectives.registry import OBJECTIVES, Needs, ObjectiveName, needs_of
from ekgsearch.maths.distillation import TeacherGate

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
        milestones: epochs after whose end the rate is multiplied by `decay`, each 1 or more, ascending.
        decay: factor of one drop.
        momentum: of the gradients.
        nesterov: whether the momentum is Nesterov's; off, it is plain.
        warmup_epochs: epochs over which the rate rises in a line, step by step; 0: it starts at its full height.
        weight_decay: L2 factor on all parameters, those of normalisation layers and biases included.
        temperature: softening of the distillation; 4 below 1000 classes, 10 for 1000.
        teacher_gate: how teachers worse than the student are left out.
        augmentation: how views are made.
        label_smoothing: share of the label target spread evenly over all classes.
        embedding_weight: weight of the term on embeddings, for `contrastive` and `byol`.
        contrast_temperature: temperature of the NT-Xent loss.
        negatives: length of the queue of past teacher projections that NT-Xent takes as negatives; 0: the other images
            of the micro-batch, over all processes.
        head_width: hidden features of the projection and prediction heads.
        projection_width: features that the projection heads give.
        target_momentum: momentum of BYOL's target network at the start; it rises to 1 along half a cosine.
        ema_decay: decay of the exponential moving average of the weights, per step; 0: none is kept.
        average_last: epochs, counted from the end, whose final weights are averaged; 0: none.
        recalibrate_images: training images over which running statistics are averaged again before each evaluation; 0:
            they stay those of the training steps. The averaged weights get theirs in any case.
        accumulate: micro-batches whose gradients make one optimiser step; batch statistics, negatives and the choice
            of teachers are those of one micro-batch.
        synchronised_norm: whether batch statistics cover all processes; off, each process has its own.
        seed: seed of the order of images, the views, heads and dropout.
        shuffle: whether the images come in a new order in every epoch; off, they come in the order of the ids.
        evaluate_every: epochs between evaluations on the test set; the last epoch is always evaluated.
        precision: arithmetic of forward and backward passes.
        channels_last: whether images and weights are laid out channels last, faster on GPUs.
        compile: whether the network's forward and backward passes are compiled; equal up to rounding.
        max_skipped: steps in a row without a finite loss and gradient that are skipped before rolling back.
        max_rollbacks: times that training goes back to its last checkpoint before it stops.
    """

    objective: ObjectiveName = "ekg"
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.01
    milestones: tuple[int, ...] = (30, 60, 80)
    decay: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    warmup_epochs: int = 0
    weight_decay: float = 5e-4
    temperature: float = 4.0
    teacher_gate: TeacherGate = "kl_to_top"
    label_smoothing: float = 0.0
    embedding_weight: float = 1.0
    contrast_temperature: float = 0.1
    negatives: int = 0
    head_width: int = 512
    projection_width: int = 128
    target_momentum: float = 0.996
    ema_decay: float = 0.0
    average_last: int = 0
    recalibrate_images: int = 0
    accumulate: int = 1
    synchronised_norm: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 1
    shuffle: bool = True
    evaluate_every: int = 1
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    max_skipped: int = 3
    max_rollbacks: int = 1

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            JobError: a value outside its range, with the range.
        """
        if self.objective not in OBJECTIVES:
            raise JobError(f"training: expected objective {', '.join(OBJECTIVES)}, found {self.objective}")
        ranges = {
            "epochs": (self.epochs >= 0, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "decay": (0 < self.decay <= 1, "above 0 and at most 1"),
            "momentum": (0 <= self.momentum < 1, "0 or more and below 1"),
            "warmup_epochs": (0 <= self.warmup_epochs <= self.epochs, f"in 0..{self.epochs}, the epochs"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "temperature": (self.temperature > 0, "above 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "0 or more and below 1"),
            "embedding_weight": (self.embedding_weight >= 0, "0 or more"),
            "contrast_temperature": (self.contrast_temperature > 0, "above 0"),
            "negatives": (self.negatives >= 0, "0 or more"),
            "head_width": (self.head_width >= 1, "1 or more"),
            "projection_width": (self.projection_width >= 1, "1 or more"),
            "target_momentum": (0 <= self.target_momentum <= 1, "in 0..1"),
            "ema_decay": (0 <= self.ema_decay < 1, "0 or more and below 1"),
            "average_last": (0 <= self.average_last <= self.epochs, f"in 0..{self.epochs}, the epochs"),
            "recalibrate_images": (self.recalibrate_images >= 0, "0 or more"),
            "accumulate": (self.accumulate >= 1, "1 or more"),
            "max_skipped": (self.max_skipped >= 0, "0 or more"),
            "max_rollbacks": (self.max_rollbacks >= 0, "0 or more"),
            "evaluate_every": (self.evaluate_every >= 1, "1 or more"),
        }
        for name, (holds, expected) in ranges.items():
            if not holds or not math.isfinite(getattr(self, name)):
                raise JobError(f"training: expected {name} {expected}, found {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise JobError(
                f"training: expected a batch size that accumulate = {self.accumulate} divides, found {self.batch_size}"
            )
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise JobError(
                f"training: expected milestones of 1 epoch or more, ascending, each once, found {self.milestones}"
            )

    @property
    def needs(self) -> Needs:
        """What the objective takes."""
        return needs_of(self.objective)

    @property
    def micro_batch(self) -> int:
        """Images over all processes that go through the network at once."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True)
class TrainData:
    """The images of a training phase.

    Attributes:
        train: training images.
        normalisation: turns pixels into network input.
        test: images that are evaluated, in running mode; None for no evaluation.
        ids: ids of the training images that are used, int64; None for all.
        loader: who makes the views.
        threads: pictures decoded at once by one process.
        max_damaged: share of the training images that may turn out damaged and be replaced.
    """

    train: ImageSet
    normalisation: Normalisation
    test: ImageSet | None = None
    ids: Tensor | None = None
    loader: LoaderName = "auto"
    threads: int = 1
    max_damaged: float = 1e-4
