"""What an epoch of training measured."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor, nn

from ekgsearch.rows import EpochRow


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Measurements of one epoch over all processes; the names are the columns of the table of epochs.

    Attributes:
        epoch: epoch, from 1.
        learning_rate: learning rate of the last step.
        loss: mean total loss per image, nats.
        loss_label: mean cross-entropy to the labels, nats per image.
        loss_distillation: mean distillation term per image.
        loss_contrastive: mean NT-Xent term per image, nats; 0 for other objectives.
        loss_views: mean BYOL term between views, in -1..1; 0 for other objectives.
        loss_regression: mean BYOL term towards the teachers' embedding, in -1..1; 0 for other objectives.
        num_teachers_used: mean number of teachers in use per batch.
        train_top1: accuracy on the training views, percent.
        test_top1: accuracy on the test set in running mode, percent; NaN where not evaluated.
        ema_top1: the same for the exponential moving average of the weights; NaN without one.
        averaged_top1: the same for the mean of the weights after the last epochs, from the last epoch; else NaN.
        skipped_steps: steps left out because a loss or gradient was not finite.
        replaced_images: of the training images seen, those that stood in for a damaged one.
        images: training images seen; views are not counted twice.
        wall_seconds: wall time of the epoch, evaluation included.
        wait_seconds: part of it in which this process waited for views and rows of the memory bank.
    """

    epoch: int
    learning_rate: float
    loss: float
    loss_label: float
    loss_distillation: float
    num_teachers_used: float
    train_top1: float
    test_top1: float
    images: int
    wall_seconds: float
    wait_seconds: float
    loss_contrastive: float = 0.0
    loss_views: float = 0.0
    loss_regression: float = 0.0
    ema_top1: float = math.nan
    averaged_top1: float = math.nan
    skipped_steps: int = 0
    replaced_images: int = 0

    def to_dict(self) -> dict[str, float]:
        """Plain numbers; measurements that were not taken are left out."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "EpochMetrics":
        """Undo `to_dict`."""
        return cls(**{"test_top1": math.nan, **values})  # type: ignore[arg-type]

    def row(self, *, run: str, phase: str, network: str, objective: str, test_images: int) -> EpochRow:
        """Make the row of the table of epochs."""
        return EpochRow(
            run=run, phase=phase, network=network, objective=objective, test_images=test_images, **asdict(self)
        )


@dataclass(frozen=True)
class StepReport:
    """What the caller is told after every step.

    Attributes:
        epoch: epoch, from 1.
        step: step within the epoch, from 1.
        images: images of the global batch.
        loss: mean total loss over this process' part, a scalar tensor; None where the step was skipped.
    """

    epoch: int
    step: int
    images: int
    loss: Tensor | None


@dataclass(frozen=True)
class TrainResult:
    """All epochs of a training phase, those before a resume included.

    Attributes:
        epochs: one entry per epoch, in order.
        averages: networks with averaged weights by name, `ema` and `averaged`, where the configuration asks for them.
    """

    epochs: tuple[EpochMetrics, ...]
    averages: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def last_top1(self) -> float:
        """Test accuracy after the last epoch, percent; NaN without evaluation. The number to report."""
        return self.epochs[-1].test_top1 if self.epochs else math.nan

    @property
    def ema_top1(self) -> float:
        """Test accuracy of the moving average of the weights after the last epoch, percent; NaN without one."""
        return self.epochs[-1].ema_top1 if self.epochs else math.nan

    @property
    def averaged_top1(self) -> float:
        """Test accuracy of the mean of the weights after the last epochs, percent; NaN without one."""
        return self.epochs[-1].averaged_top1 if self.epochs else math.nan

    @property
    def best(self) -> EpochMetrics | None:
        """Earliest epoch with the highest test accuracy (selected on the test set), or None without evaluation."""
        evaluated = [metrics for metrics in self.epochs if not math.isnan(metrics.test_top1)]
        return max(evaluated, key=lambda metrics: metrics.test_top1, default=None)

    @property
    def best_top1(self) -> float:
        """Test accuracy of the best epoch, percent; NaN without evaluation."""
        return math.nan if self.best is None else self.best.test_top1
