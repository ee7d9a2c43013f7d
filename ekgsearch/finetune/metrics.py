"""What an epoch of training measured."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ekgsearch.records import EpochRow


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Measurements of one epoch over all processes; the names are the columns of the table of epochs.

    Attributes:
        epoch: epoch, from 1.
        learning_rate: learning rate of the last step.
        loss: mean total loss per image, nats.
        loss_label: mean cross-entropy to the labels, nats per image.
        loss_distillation: mean distillation term per image.
        num_teachers_used: mean number of teachers in use per batch.
        train_top1: accuracy on the training views, percent.
        test_top1: accuracy on the test set in running mode, percent; NaN where not evaluated.
        images: training images seen; views are not counted twice.
        wall_seconds: wall time of the epoch, evaluation included.
        wait_seconds: part of it in which this process waited for data.
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

    def to_dict(self) -> dict[str, float]:
        """Plain numbers; measurements that were not taken are left out."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "EpochMetrics":
        """Undo `to_dict`."""
        return cls(**{"test_top1": math.nan, **values})  # type: ignore[arg-type]

    def row(self, *, run: str, phase: str, network: str, objective: str) -> EpochRow:
        """Make the row of the table of epochs."""
        values = asdict(self)
        del values["wait_seconds"]
        return EpochRow(run=run, phase=phase, network=network, objective=objective, **values)


@dataclass(frozen=True)
class TrainResult:
    """All epochs of a training phase, those before a resume included.

    Attributes:
        epochs: one entry per epoch, in order.
    """

    epochs: tuple[EpochMetrics, ...]

    @property
    def last_top1(self) -> float:
        """Test accuracy after the last epoch, percent; NaN without evaluation. The number to report."""
        return self.epochs[-1].test_top1 if self.epochs else math.nan

    @property
    def best(self) -> EpochMetrics | None:
        """Earliest epoch with the highest test accuracy (selected on the test set), or None without evaluation."""
        evaluated = [metrics for metrics in self.epochs if not math.isnan(metrics.test_top1)]
        return max(evaluated, key=lambda metrics: metrics.test_top1, default=None)

    @property
    def best_top1(self) -> float:
        """Test accuracy of the best epoch, percent; NaN without evaluation."""
        return math.nan if self.best is None else self.best.test_top1
