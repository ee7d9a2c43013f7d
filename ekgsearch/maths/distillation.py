"""What a student is pulled towards: softened divergences and the ensemble of teachers in use.

Letters: B images, V views, C classes, F features of an embedding, K teachers. Source: EKG (arXiv 2203.02651),
fine-tuning with a memory bank.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

TeacherGate = Literal["kl_to_top", "ce"]
"""How teachers worse than the student are left out: by divergence from the best teacher, or by label cross-entropy."""


def local(values: Tensor) -> Tensor:
    """Sum over one process: the values themselves; the default of every `reduce` argument here."""
    return values


def divergence(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Softened Kullback-Leibler divergence D(target, logits), scaled by the temperature.

    D(a, b) = T * sum_c softmax(a/T)_c * (log softmax(a/T)_c - log softmax(b/T)_c). The factor is T, not T squared, so
    the gradient towards b is softmax(b/T) - softmax(a/T).

    Args:
        target: logits (..., C) of the teacher; broadcast against `logits`.
        logits: logits (..., C) of the student.
        temperature: T > 0; the papers use 4 below 1000 classes and 10 for 1000.

    Returns:
        One number >= 0 per image, shape (...,), nats times T.
    """
    log_target = functional.log_softmax(target / temperature, dim=-1)
    log_student = functional.log_softmax(logits / temperature, dim=-1)
    return temperature * (log_target.exp() * (log_target - log_student)).sum(dim=-1)


def label_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy to the labels, one number per image and view.

    Args:
        logits: logits (B, V, C).
        labels: class indices (B,).
        smoothing: share of the target that is spread evenly over all classes, 0..1 (label smoothing).

    Returns:
        Losses (B, V), nats.
    """
    images, views, classes = logits.shape
    repeated = labels[:, None].expand(images, views).reshape(-1)
    flat = logits.reshape(-1, classes)
    return functional.cross_entropy(flat, repeated, reduction="none", label_smoothing=smoothing).view(images, views)


@torch.no_grad()
def teachers_in_use(
    bank: Tensor,
    student: Tensor,
    temperature: float,
    *,
    gate: TeacherGate = "kl_to_top",
    labels: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] = local,
) -> Tensor:
    """Decide for a whole mini-batch which teachers are still better than the student.

    `kl_to_top` (the reference code) keeps teacher k while sum_b D(m_0, m_k) < sum_b D(m_0, z), m_0 the teacher of the
    lowest loss and z the mean of the student's logits over its views. `ce` (the paper) keeps it while its cross-entropy
    to the labels is at most that of z. Teacher 0 is always kept: a student that equals it would otherwise be pulled
    towards the uniform distribution.

    Args:
        bank: teacher logits (B, C, K), teacher 0 the one of the lowest loss.
        student: student logits (B, V, C).
        temperature: softening of the divergence.
        gate: which of the two rules.
        labels: class indices (B,); needed by `ce`.
        reduce: sums a vector over all processes, so that the decision does not depend on their number.

    Returns:
        Boolean tensor (K,).

    Raises:
        ValueError: `ce` without labels.
    """
    mean_logits = student.detach().mean(dim=1)
    rivals = torch.cat([mean_logits[:, None, :], bank.transpose(1, 2)], dim=1)
    match gate:
        case "kl_to_top":
            distances = divergence(bank[:, None, :, 0], rivals, temperature)
        case "ce":
            if labels is None:
                raise ValueError("the teacher gate 'ce' compares cross-entropies: pass the labels of the mini-batch")
            distances = label_losses(rivals, labels)
    totals = reduce(distances.sum(dim=0, dtype=torch.float64))
    use = totals[1:] < totals[0] if gate == "kl_to_top" else totals[1:] <= totals[0]
    use[0] = True
    return use


@torch.no_grad()
def teacher_targets(
    bank: Tensor,
    student: Tensor,
    temperature: float,
    *,
    gate: TeacherGate = "kl_to_top",
    labels: Tensor | None = None,
    reduce: Callable[[Tensor], Tensor] = local,
) -> tuple[Tensor, Tensor]:
    """Average the logits of the teachers in use (see `teachers_in_use` for the arguments).

    Returns:
        The target logits (B, C), and which teachers made them, a boolean tensor (K,). Neither carries a gradient.
    """
    use = teachers_in_use(bank, student, temperature, gate=gate, labels=labels, reduce=reduce)
    weights = use.to(bank.dtype)
    return bank @ (weights / weights.sum()), use


@torch.no_grad()
def ensemble_embedding(embeddings: Tensor, use: Tensor) -> Tensor:
    """Average the directions in which the teachers in use see an image.

    e[b] is the L2-normalised mean, over the teachers in use, of their L2-normalised embeddings.

    Args:
        embeddings: embeddings (B, F, K) of the teachers, zeros where a teacher lacks a channel.
        use: teachers in use (K,), boolean, at least one.

    Returns:
        Unit vectors (B, F); zeros for an image whose teachers have no direction.
    """
    directions = functional.normalize(embeddings, dim=1)
    return functional.normalize(directions @ use.to(directions.dtype), dim=1)


def distillation_loss(
    student: Tensor, labels: Tensor, target: Tensor, temperature: float, *, smoothing: float = 0.0
) -> dict[str, Tensor]:
    """Pull every view towards its label and towards a target.

    Args:
        student: logits (B, V, C).
        labels: class indices (B,), int64.
        target: logits (B, V, C), or (B, 1, C) where the views of an image meet in one target; no gradient.
        temperature: softening of the divergence.
        smoothing: label smoothing, 0..1.

    Returns:
        Scalars `loss`, `loss_label` and `loss_distillation`, means over images and views; the first is their sum.
    """
    loss_label = label_losses(student, labels, smoothing).mean()
    loss_distillation = divergence(target, student, temperature).mean()
    return {"loss": loss_label + loss_distillation, "loss_label": loss_label, "loss_distillation": loss_distillation}


def ekg_loss(
    student: Tensor,
    labels: Tensor,
    bank: Tensor,
    temperature: float,
    *,
    gate: TeacherGate = "kl_to_top",
    smoothing: float = 0.0,
    reduce: Callable[[Tensor], Tensor] = local,
) -> tuple[dict[str, Tensor], Tensor]:
    """Pull every view of an image towards its label and towards the one target of its teachers.

    loss = 1/V * sum over views of mean_b [ CE(y_b, z_bv) + D(target_b, z_bv) ]. "Contrastive" in the paper's sense: the
    views of an image meet in one fixed target; there are no negative pairs.

    Args:
        student: logits (B, V, C) of the student on V views of each image.
        labels: class indices (B,), int64.
        bank: teacher logits (B, C, K) of the same images, un-augmented.
        temperature: softening of the divergence.
        gate: how teachers worse than the student are left out; it compares without label smoothing.
        smoothing: label smoothing, 0..1.
        reduce: sums a vector over all processes.

    Returns:
        Scalars `loss`, `loss_label`, `loss_distillation` and `num_teachers_used`, the last without a gradient; and
        which teachers were used, a boolean tensor (K,).
    """
    target, use = teacher_targets(bank, student, temperature, gate=gate, labels=labels, reduce=reduce)
    parts = distillation_loss(student, labels, target[:, None, :], temperature, smoothing=smoothing)
    return {**parts, "num_teachers_used": use.sum()}, use
