"""The terms on embeddings: NT-Xent and BYOL between a student's views and the direction its teachers agree on.

The one module that uses lightly (https://github.com/lightly-ai/lightly): its losses, heads and momentum helpers. It is
imported only where a term is made, so the other objectives run without it.

Letters: B images, V views, F features of an embedding, D features of a projection.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.errors import JobError
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.student import Student
from ekgsearch.finetune.world import World


class ContrastiveTerm(nn.Module):
    """NT-Xent between every view's projection and the projection of the teachers' embedding of the same image.

    SimCLR (arXiv 2002.05709), with the teachers in the place of the second view. The negatives of a projection are the
    projections, by either head, of the other images of the micro-batch over all processes; with a queue (MoCo, arXiv
    1911.05722) they are the past teacher projections in it instead.
    """

    def __init__(self, width: int, teacher_width: int, config: FinetuneConfig, world: World) -> None:
        """Make both heads and, where asked for, a queue of random unit vectors.

        Args:
            width: F of the student.
            teacher_width: F of the memory bank.
            config: names widths, temperature and the length of the queue.
            world: this process; its queue is that of all processes.
        """
        super().__init__()
        loss, modules = _lightly()
        hidden, features = config.head_width, config.projection_width
        self.projection = modules.SimCLRProjectionHead(width, hidden, features)
        self.teacher_projection = modules.SimCLRProjectionHead(teacher_width, hidden, features)
        self.criterion = loss.NTXentLoss(
            temperature=config.contrast_temperature,
            memory_bank_size=(config.negatives, features) if config.negatives else 0,
            gather_distributed=world.size > 1,
        )

    def forward(self, embeddings: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute the loss.

        Args:
            embeddings: the student's (B, V, F).
            target: directions (B, F) of the teachers in use.

        Returns:
            Scalar `loss_contrastive`, the mean over the views.
        """
        projected = _apply(self.projection, embeddings)
        teachers = self.teacher_projection(target)
        queue = self.criterion.memory_bank
        before = [buffer.clone() for buffer in queue.buffers()]
        losses = []
        for view in projected.unbind(1):
            for buffer, value in zip(queue.buffers(), before, strict=True):
                buffer.copy_(value)  # every view sees the same negatives, and the queue takes the teachers once
            losses.append(self.criterion(view, teachers))
        return {"loss_contrastive": torch.stack(losses).mean()}


class ByolTerm(nn.Module):
    """BYOL (arXiv 2006.07733) between the two views, and a regression of the teachers' embedding.

    loss_views = 1/V sum_a negcos(predictor(projection(h_a)), target projection of the other view), in -1..1;
    loss_regression = 1/V sum_a negcos(regressor(h_a), e), in -1..1.
    """

    def __init__(self, width: int, teacher_width: int, config: FinetuneConfig) -> None:
        """Make the heads that learn by gradients.

        Args:
            width: F of the student.
            teacher_width: F of the memory bank.
            config: names the widths.
        """
        super().__init__()
        loss, modules = _lightly()
        hidden, features = config.head_width, config.projection_width
        self.projection = modules.BYOLProjectionHead(width, hidden, features)
        self.predictor = modules.BYOLPredictionHead(features, hidden, features)
        self.regressor = modules.BYOLPredictionHead(width, hidden, teacher_width)
        self.criterion = loss.NegativeCosineSimilarity(dim=-1)

    def forward(self, embeddings: Tensor, target: Tensor, momentum_views: Tensor) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            embeddings: the student's (B, V, F).
            target: directions (B, F) of the teachers in use.
            momentum_views: projections (B, V, D) by the target network, without a gradient.

        Returns:
            Scalars `loss_views` and `loss_regression`.
        """
        predicted = _apply(self.predictor, _apply(self.projection, embeddings))
        regressed = _apply(self.regressor, embeddings)
        return {
            "loss_views": self.criterion(predicted, momentum_views.flip(1)),
            "loss_regression": self.criterion(regressed, target[:, None, :].expand_as(regressed)),
        }


class MomentumTarget(nn.Module):
    """BYOL's target network: a copy of the student and its projection head that follows them slowly.

    Only parameters follow. It normalises by the statistics of the batch, as the student does in training, so its
    running statistics are its own (of its own forward passes) and nothing reads them. Dropout is off in it.
    """

    def __init__(self, student: Student, projection: nn.Module) -> None:
        super().__init__()
        from lightly.models.utils import deactivate_requires_grad

        self.student = copy.deepcopy(student)
        self.projection = copy.deepcopy(projection)
        deactivate_requires_grad(self)
        self.eval()
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train()

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """Project views (B, V, 3, H, W) to (B, V, D)."""
        embeddings = self.student(views).embeddings
        return _apply(self.projection, embeddings)

    @torch.no_grad()
    def follow(self, student: Student, projection: nn.Module, start: float, step: int, num_steps: int) -> None:
        """Move towards the student.

        Args:
            student: what the copy was made of.
            projection: its projection head.
            start: momentum of the first step; it rises to 1 along half a cosine.
            step: steps done before this one, over all epochs.
            num_steps: steps of the whole training.
        """
        from lightly.models.utils import update_momentum
        from lightly.utils.scheduler import cosine_schedule

        momentum = cosine_schedule(step, num_steps, start, 1.0)
        update_momentum(student, self.student, momentum)
        update_momentum(projection, self.projection, momentum)


def _lightly() -> tuple[Any, Any]:
    """Lightly's losses and heads."""
    try:
        from lightly import loss
        from lightly.models import modules
    except ImportError as error:
        raise JobError(
            f"the objectives contrastive and byol need lightly >= 1.6, found {error}; install it "
            "(pip install 'lightly>=1.6'), or use ekg"
        ) from error
    return loss, modules


def _apply(head: nn.Module, values: Tensor) -> Tensor:
    """Run a head over the features of all views at once: (B, V, F) to (B, V, D)."""
    flat: Tensor = head(values.flatten(0, 1))
    return flat.view(*values.shape[:2], -1)
