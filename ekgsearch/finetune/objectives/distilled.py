"""Distillation: from the unpruned network, and from the ensemble of teachers in the memory bank."""

from collections.abc import Mapping

from torch import Tensor

from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.objectives.labels import LabelObjective, known_labels
from ekgsearch.finetune.student import Answer
from ekgsearch.maths.distillation import distillation_loss, ekg_loss

_PARTS: tuple[str, ...] = ("loss", "loss_label", "loss_distillation", "num_teachers_used")


class Single(LabelObjective):
    """Cross-entropy, and every view pulled towards what the unpruned network says to it."""

    parts = _PARTS

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Run the unpruned network on the views."""
        assert self.given.teacher is not None, "the loop refuses this objective without a teacher"
        return {"teacher": self.given.teacher(batch.views)}

    def forward(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses; see `Objective.forward`."""
        config, logits = self.given.config, self.student(batch.views).outputs
        teacher = targets["teacher"]
        parts = distillation_loss(
            logits, known_labels(batch), teacher, config.temperature, smoothing=config.label_smoothing
        )
        return {**parts, "num_teachers_used": logits.new_ones(())}, logits


class Ekg(LabelObjective):
    """Cross-entropy, and all views of an image pulled towards one target of the teachers in use.

    EKG (arXiv 2203.02651), fine-tuning with a memory bank.
    """

    parts = _PARTS

    def forward(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses; see `Objective.forward`."""
        answer = self.student(batch.views)
        parts, _ = self.on_logits(answer, batch)
        return parts, answer.outputs

    def on_logits(self, answer: Answer, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms on logits; see `ekg_loss` for what is returned."""
        assert batch.rows is not None, "the loop refuses objectives on the memory bank without one"
        return ekg_loss(
            answer.outputs,
            known_labels(batch),
            batch.rows.logits,
            self.given.config.temperature,
            gate=self.given.config.teacher_gate,
            smoothing=self.given.config.label_smoothing,
            reduce=self.given.world.sum,
        )
