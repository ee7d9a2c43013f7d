"""Measurements of an epoch of training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor, nn

from ekgsearch.rows.training import EpochRow


@dataclass(frozen=True)
class Metric:
    """The number that a network is judged by.

    Attributes:
        name: its name; `test_<name>` is that of the network on the test images, `ema_<name>` and `averaged_<name>` are
            those of the averages of its weights.
        highest_is_best: whether more of it is better.
    """

    name: str
    highest_is_best: bool = True

    def of(self, network: str) -> str:
        """Name under which it is kept for a network: test, ema, averaged."""
        return f"{network}_{self.name}"


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Measurements of one epoch over all processes.

    Attributes:
        epoch: epoch, from 1.
        learning_rate: learning rate of the last step.
        images: training images seen; views are not counted twice.
        wall_seconds: wall time of the epoch, evaluation included.
        wait_seconds: part of it in which this process waited for views and rows of the memory bank.
        skipped_steps: steps left out because a loss or gradient was not finite.
        replaced_images: of the training images seen, those that stood in for a damaged one.
        values: what the objective measured, by name: means over the images of the parts of its loss and of its counts;
            its metric on the test images in running mode, where it was evaluated, for the network (`test_...`), for
            the moving average of its weights (`ema_...`) and, in the last epoch, for their mean (`averaged_...`).
    """

    epoch: int
    learning_rate: float
    images: int
    wall_seconds: float
    wait_seconds: float
    skipped_steps: int = 0
    replaced_images: int = 0
    values: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean total loss per image."""
        return self.values["loss"]

    def to_dict(self) -> dict[str, float]:
        """Plain numbers; those that are no numbers are left out."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "values"}
        return {name: value for name, value in {**own, **self.values}.items() if not math.isnan(value)}

    @classmethod
    def from_dict(cls, given: Mapping[str, float]) -> "EpochMetrics":
        """Undo `to_dict`."""
        names = {item.name for item in fields(cls)}
        own = {name: value for name, value in given.items() if name in names}
        values = {name: value for name, value in given.items() if name not in names}
        return cls(values=values, **own)  # type: ignore[arg-type]

    def row(self, *, run: str, phase: str, network: str, objective: str, test_images: int) -> EpochRow:
        """Make the row of the table of epochs; what has no column there is left out."""
        columns = {item.name for item in fields(EpochRow)}
        measured = {name: value for name, value in self.to_dict().items() if name in columns}
        return EpochRow(
            run=run,
            phase=phase,
            network=network,
            objective=objective,
            test_images=test_images,
            **measured,  # type: ignore[arg-type]
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
        metric: what the network is judged by.
        averages: networks with averaged weights by name, `ema` and `averaged`, where the configuration asks for them.
    """

    epochs: tuple[EpochMetrics, ...]
    metric: Metric
    averages: Mapping[str, nn.Module] = field(default_factory=dict)

    def last(self, network: str = "test") -> float:
        """The metric after the last epoch, the number to report; NaN where it was not evaluated.

        Args:
            network: test: the network itself; ema, averaged: an average of its weights.
        """
        return self.epochs[-1].values.get(self.metric.of(network), math.nan) if self.epochs else math.nan

    @property
    def best(self) -> EpochMetrics | None:
        """Earliest epoch of the best metric (selected on the test set), or None without evaluation."""
        name, sign = self.metric.of("test"), 1 if self.metric.highest_is_best else -1
        evaluated = [epoch for epoch in self.epochs if name in epoch.values]
        return max(evaluated, key=lambda epoch: sign * epoch.values[name], default=None)

    @property
    def best_value(self) -> float:
        """The metric of the best epoch; NaN without evaluation."""
        return math.nan if self.best is None else self.best.values[self.metric.of("test")]
