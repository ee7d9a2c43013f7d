"""Ensemble knowledge of the interim sub-networks, and the score that uses it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_terms(logits: Tensor, labels: Tensor, knowledge: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies of each image to its label and to the ensemble's prediction.

    Score of an image = CE(label, z) + CE(softmax(T), z) at temperature 1; the reward is minus its mean
    (EKG, arXiv 2203.02651, eq. 3). Up to a constant the second term is the Kullback-Leibler divergence from the
    ensemble.

    Args:
        logits: z, (B, classes).
        labels: (B,) int64.
        knowledge: T, mean logits of the networks found so far, (B, classes), same dtype as `logits`.

    Returns:
        Two tensors of shape (B,), in nats, differentiable in `logits`.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    to_label = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    to_ensemble = -(F.softmax(knowledge, dim=1) * log_probabilities).sum(dim=1)
    return to_label, to_ensemble


def add_to_mean(mean: Tensor, count: int, value: Tensor) -> Tensor:
    """Return the mean of `count` + 1 tensors from the mean of `count` and one more, in the dtype of `mean`."""
    return (mean * count + value.to(mean.dtype)) / (count + 1)


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit (lowest class at a tie) is the label's: (B,) bool."""
    return torch.argmax(logits, dim=1) == labels
