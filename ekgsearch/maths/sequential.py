"""Batch normalisation whose sums are added up one after the other, as the program published with EKG adds them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _SequentialNorm(torch.autograd.Function):
    """Works on rows of channels, which is how convolutions lay out their result where their input is laid out so."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        rows = values.movedim(1, -1)
        positions = rows[0].numel() // rows.shape[-1]
        lines = rows.reshape(len(rows), -1)
        scale = values.new_tensor(1.0) / (len(rows) * positions)
        mean = _sum(lines, rows.shape[-1]) * scale
        centred = lines - mean.repeat(positions)
        deviation = torch.rsqrt(_sum(centred * centred, rows.shape[-1]) * scale + eps)
        ctx.save_for_backward(values, weight, mean, deviation)
        ctx.eps = eps
        result = centred.mul_((deviation if weight is None else deviation * weight).repeat(positions))
        if bias is not None:
            result.add_(bias.repeat(positions))
        return result.view(rows.shape).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, deviation = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, weight, None, None, mean, deviation, True, ctx.eps, wanted
        )
        return *found, None


def _sum(lines: Tensor, channels: int) -> Tensor:
    """Sum of rows of channels, one row after the other, in the precision of the values; (B, rows x C) to (C,)."""
    rows = lines.view(-1, channels)
    order = torch.arange(len(rows), device=rows.device)
    return F.embedding_bag(order, rows, order[:1], mode="sum")[0]


def sequential_batch_norm(values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise by the statistics of the batch, summed one element after the other in the precision of the values.

    TensorFlow's CPU kernels (Eigen) add the elements of a channel in the order batch, height, width into one
    accumulator, first for the mean, then for the variance. A sum of 262,144 positive float32 numbers is then wrong by
    up to 1e-4, which moves logits of ResNet-56 by 3e-4 and, where predictions are nearly perfect, importance by 1 %;
    torch sums in double precision. Differentiable; the backward pass sums as torch does, which makes no difference.

    Args:
        values: (B, C, ...); laid out with channels last, nothing is copied to be summed.
        weight: gamma, (C,); None for 1.
        bias: beta, (C,); None for 0.
        eps: added to the biased variance.

    Returns:
        (B, C, ...), in the dtype of `values`, laid out with channels last.
    """
    normalised: Tensor = _SequentialNorm.apply(values, weight, bias, eps)
    return normalised
