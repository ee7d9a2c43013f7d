"""Objectives on labelled images, which are judged by accuracy, and cross-entropy alone."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ekgsearch.data.datasets import ImageSet
from ekgsearch.data.views import Normalisation
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.evaluate import evaluate
from ekgsearch.finetune.metrics import Metric
from ekgsearch.finetune.objectives.base import Objective
from ekgsearch.maths.distillation import label_losses


class LabelObjective(Objective):
    """An objective whose network gives logits of classes."""

    counts = ("train_top1",)
    metric = Metric("top1")

    def count(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Count right answers, averaged over the views, in percent."""
        right = (outputs.argmax(dim=-1) == known_labels(batch)[:, None]).float().mean(dim=1).sum().double()
        return 100 * right.reshape(1)

    def measure(
        self, network: nn.Module, images: ImageSet, normalisation: Normalisation, check: Callable[[], None]
    ) -> float:
        """Accuracy in running mode, percent; see `evaluate`."""
        return evaluate(network, images, normalisation, self.given.world, check=check).top1


class Plain(LabelObjective):
    """Cross-entropy."""

    parts = ("loss", "loss_label")

    def forward(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the loss; see `Objective.forward`."""
        logits = self.student(batch.views).outputs
        loss = label_losses(logits, known_labels(batch), self.given.config.label_smoothing).mean()
        return {"loss": loss, "loss_label": loss}, logits


def known_labels(batch: Batch) -> Tensor:
    """Labels (B,) of a batch for an objective that needs them."""
    assert batch.labels is not None, "the loader reads labels for the objectives that need them"
    return batch.labels
