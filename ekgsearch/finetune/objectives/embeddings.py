"""Distillation from the memory bank with a term on embeddings: contrastive, or BYOL's."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.objectives.base import Given
from ekgsearch.finetune.objectives.distilled import Ekg
from ekgsearch.finetune.objectives.self_supervised import ByolTerm, ContrastiveTerm, MomentumTarget
from ekgsearch.maths.distillation import ensemble_embedding
from ekgsearch.runtime.seeds import sub_seed


class OnEmbeddings(Ekg):
    """The losses of `Ekg`, and a weighted term on embeddings.

    Attributes:
        extra: names of the parts of the term.
        term: its heads and its loss.
    """

    extra: ClassVar[tuple[str, ...]]
    term: nn.Module

    def __init__(self, given: Given) -> None:
        """Make the heads; equal seeds give equal heads on every process.

        Raises:
            JobError: lightly is not installed.
        """
        super().__init__(given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sub_seed(given.config.seed, "heads"))
            self.term = self.make_term(given).to(given.world.device)

    @abstractmethod
    def make_term(self, given: Given) -> nn.Module:
        """Make the heads and the loss of the term."""

    @abstractmethod
    def on_embeddings(self, embeddings: Tensor, ensemble: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the parts of the term.

        Args:
            embeddings: the student's (B, V, F).
            ensemble: directions (B, F) of the teachers in use.
            targets: what `targets` made.
        """

    def forward(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses; see `Objective.forward`."""
        answer = self.student(batch.views)
        parts, use = self.on_logits(answer, batch)
        assert answer.embeddings is not None, "the student keeps embeddings where there is a term on them"
        assert batch.rows is not None, "the loop refuses objectives on the memory bank without one"
        assert batch.rows.embeddings is not None, "the loop refuses a memory bank without embeddings"
        ensemble = ensemble_embedding(batch.rows.embeddings, use)
        parts |= self.on_embeddings(answer.embeddings, ensemble, targets)
        extra = torch.stack([parts[name] for name in self.extra]).sum()
        parts["loss"] = parts["loss"] + self.given.config.embedding_weight * extra
        return parts, answer.outputs


class Contrastive(OnEmbeddings):
    """`Ekg`, and NT-Xent between every view and the teachers' embedding of its image."""

    extra = ("loss_contrastive",)
    parts = (*Ekg.parts, *extra)
    term: ContrastiveTerm

    def make_term(self, given: Given) -> ContrastiveTerm:
        """Make both projection heads, and the queue where there is one."""
        return ContrastiveTerm(given.student.width, given.teacher_width, given.config, given.world)

    def on_embeddings(self, embeddings: Tensor, ensemble: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute NT-Xent."""
        parts: dict[str, Tensor] = self.term(embeddings, ensemble)
        return parts


class Byol(OnEmbeddings):
    """`Ekg`, and BYOL between the views, whose target network follows the student step by step."""

    extra = ("loss_views", "loss_regression")
    parts = (*Ekg.parts, *extra)
    term: ByolTerm

    def __init__(self, given: Given) -> None:
        """Make the heads, and the target network as a copy of the student and its projection head."""
        super().__init__(given)
        self.followers["target"] = MomentumTarget(given.student, self.term.projection)

    @property
    def target(self) -> MomentumTarget:
        """The target network."""
        target = self.followers["target"]
        assert isinstance(target, MomentumTarget)
        return target

    def make_term(self, given: Given) -> ByolTerm:
        """Make the heads that learn by gradients."""
        return ByolTerm(given.student.width, given.teacher_width, given.config)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Project the views by the target network."""
        return {"projections": self.target(batch.views)}

    def on_embeddings(self, embeddings: Tensor, ensemble: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the losses between the views and towards the teachers."""
        parts: dict[str, Tensor] = self.term(embeddings, ensemble, targets["projections"])
        return parts

    def after_step(self, done: int, num_steps: int) -> None:
        """Let the target network follow."""
        start = self.given.config.target_momentum
        self.target.follow(self.student, self.term.projection, start=start, step=done, num_steps=num_steps)
