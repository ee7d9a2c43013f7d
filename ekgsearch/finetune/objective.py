"""The objectives as one module: from the views of a batch to its named losses, heads included."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ekgsearch.bank.rows import BankRows
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.objectives.self_supervised import ByolTerm, ContrastiveTerm
from ekgsearch.finetune.student import Student
from ekgsearch.maths.distillation import distillation_loss, ekg_loss, ensemble_embedding, label_losses

LOSS_NAMES = (
    "loss",
    "loss_label",
    "loss_distillation",
    "loss_contrastive",
    "loss_views",
    "loss_regression",
    "num_teachers_used",
)
"""What every objective measures, zeros where it has no such part; also columns of the table of epochs."""


class Objective(nn.Module):
    """Student, heads and loss; the one module whose gradients are averaged over processes."""

    def __init__(
        self,
        student: Student,
        config: FinetuneConfig,
        *,
        term: ContrastiveTerm | ByolTerm | None,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Put an objective together.

        Args:
            student: the network that learns.
            config: names the objective, its temperature, weight and teacher gate.
            term: the term on embeddings, for `contrastive` and `byol`.
            reduce: sums a vector over all processes.
        """
        super().__init__()
        self.student = student
        self.term = term
        self._config = config
        self._reduce = reduce

    def forward(
        self,
        views: Tensor,
        labels: Tensor,
        rows: BankRows | None = None,
        teacher: Tensor | None = None,
        momentum_views: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a micro-batch.

        Args:
            views: network input (B, V, 3, H, W).
            labels: class indices (B,).
            rows: rows of the memory bank, for `ekg`, `contrastive` and `byol`.
            teacher: logits (B, V, C) of the unpruned network, for `single`.
            momentum_views: projections (B, V, D) by the target network, for `byol`.

        Returns:
            Scalars under `LOSS_NAMES`, and the student's logits (B, V, C).
        """
        answer = self.student(views)
        logits, config = answer.logits, self._config
        zero = logits.new_zeros(())
        if config.objective == "plain":
            loss = label_losses(logits, labels, config.label_smoothing).mean()
            parts = {"loss": loss, "loss_label": loss, "num_teachers_used": zero}
        elif config.objective == "single":
            assert teacher is not None, "the loop refuses `single` without a teacher"
            parts = distillation_loss(logits, labels, teacher, config.temperature, smoothing=config.label_smoothing)
            parts["num_teachers_used"] = logits.new_ones(())
        else:
            assert rows is not None, "the loop refuses objectives on the memory bank without one"
            parts, use = ekg_loss(
                logits,
                labels,
                rows.logits,
                config.temperature,
                gate=config.teacher_gate,
                smoothing=config.label_smoothing,
                reduce=self._reduce,
            )
            if self.term is not None:
                parts |= self._on_embeddings(answer.embeddings, rows, use, momentum_views)
                extra = [parts[name] for name in ("loss_contrastive", "loss_views", "loss_regression") if name in parts]
                parts["loss"] = parts["loss"] + config.embedding_weight * torch.stack(extra).sum()
        return {name: parts.get(name, zero) for name in LOSS_NAMES}, logits

    def _on_embeddings(
        self, embeddings: Tensor | None, rows: BankRows, use: Tensor, momentum_views: Tensor | None
    ) -> dict[str, Tensor]:
        assert embeddings is not None, "the student keeps embeddings where there is a term on them"
        assert rows.embeddings is not None, "the loop refuses a memory bank without embeddings"
        target = ensemble_embedding(rows.embeddings, use)
        if isinstance(self.term, ByolTerm):
            parts: dict[str, Tensor] = self.term(embeddings, target, momentum_views)
        else:
            assert self.term is not None
            parts = self.term(embeddings, target)
        return parts
