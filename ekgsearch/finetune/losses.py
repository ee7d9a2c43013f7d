"""The training objectives, each as a dictionary of named scalar losses."""

from collections.abc import Callable

from torch import Tensor

from ekgsearch.errors import JobError
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.maths.distillation import divergence, ekg_loss, label_losses

LOSS_NAMES = ("loss", "loss_label", "loss_distillation", "num_teachers_used")
"""Keys of every dictionary of losses, which are also the columns of the table of epochs."""


def plain_loss(student: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Mean cross-entropy to the labels.

    Args:
        student: logits (B, V, C).
        labels: class indices (B,).
    """
    loss = label_losses(student, labels).mean()
    zero = loss.new_zeros(())
    return {"loss": loss, "loss_label": loss, "loss_distillation": zero, "num_teachers_used": zero}


def single_loss(student: Tensor, labels: Tensor, teacher: Tensor, temperature: float) -> dict[str, Tensor]:
    """Cross-entropy to the labels plus the divergence from one teacher that sees the same views.

    Args:
        student: logits (B, V, C).
        labels: class indices (B,).
        teacher: logits (B, V, C) of the unpruned network, without gradient.
        temperature: softening of the divergence.
    """
    loss_label = label_losses(student, labels).mean()
    loss_distillation = divergence(teacher, student, temperature).mean()
    return {
        "loss": loss_label + loss_distillation,
        "loss_label": loss_label,
        "loss_distillation": loss_distillation,
        "num_teachers_used": loss_label.new_ones(()),
    }


def losses(
    config: FinetuneConfig,
    student: Tensor,
    labels: Tensor,
    *,
    bank: Tensor | None,
    teacher: Tensor | None,
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Compute the objective of a configuration.

    Args:
        config: names the objective, the temperature and the teacher gate.
        student: logits (B, V, C).
        labels: class indices (B,).
        bank: rows (B, C, K) of the memory bank, for `ekg`.
        teacher: logits (B, V, C) of the online teacher, for `single`.
        reduce: sums a vector over all processes.

    Returns:
        Scalars under `LOSS_NAMES`.

    Raises:
        JobError: the objective's teacher is missing.
    """
    match config.objective:
        case "plain":
            return plain_loss(student, labels)
        case "single":
            if teacher is None:
                raise JobError("objective 'single' distils from the unpruned network: pass it as the teacher")
            return single_loss(student, labels, teacher, config.temperature)
        case "ekg":
            if bank is None:
                raise JobError("objective 'ekg' distils from a memory bank: build one and pass it")
            gate = config.teacher_gate
            return ekg_loss(student, labels, bank, config.temperature, gate=gate, reduce=reduce)
