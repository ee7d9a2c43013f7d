"""Batch normalisation by the statistics of the batch: fast on a CPU, or with the sums of the program of EKG."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _BatchNorm(torch.autograd.Function):
    """Differentiation of what `forward` of a subclass computes; torch's own, by the statistics that were found."""

    @staticmethod
    def keep(ctx: Any, values: Tensor, weight: Tensor | None, mean: Tensor, deviation: Tensor, eps: float) -> None:
        ctx.save_for_backward(values, weight, mean, deviation)
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, deviation = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradients[0], values, weight, None, None, mean, deviation, True, ctx.eps, wanted
        )
        return *found, None


class _ByMaps(_BatchNorm):
    """Each feature map lies in one piece, and is summed and multiplied by itself in one go."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        maps = values.flatten(2)
        images, channels, positions = maps.shape
        mean = maps.sum((0, 2)) / (images * positions)
        centred = maps - mean[:, None]
        lines = centred.view(-1, 1, positions)
        squares = torch.bmm(lines, lines.mT).view(images, channels).sum(0, dtype=torch.float64)
        deviation = torch.rsqrt(squares / (images * positions) + eps).to(values.dtype)
        _BatchNorm.keep(ctx, values, weight, mean, deviation, eps)
        normalised = centred.mul_((deviation if weight is None else deviation * weight)[:, None])
        return (normalised if bias is None else normalised.add_(bias[:, None])).view(values.shape)


class _Sequential(_BatchNorm):
    """Works on rows of channels, which is how convolutions lay out their result where their input is laid out so."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        rows = values.movedim(1, -1)
        positions = rows[0].numel() // rows.shape[-1]
        lines = rows.reshape(len(rows), -1)
        scale = values.new_tensor(1.0) / (len(rows) * positions)
        mean = _sum_of_rows(lines, rows.shape[-1]) * scale
        centred = lines - mean.repeat(positions)
        deviation = torch.rsqrt(_sum_of_rows(centred * centred, rows.shape[-1]) * scale + eps)
        _BatchNorm.keep(ctx, values, weight, mean, deviation, eps)
        normalised = centred.mul_((deviation if weight is None else deviation * weight).repeat(positions))
        if bias is not None:
            normalised.add_(bias.repeat(positions))
        return normalised.view(rows.shape).movedim(-1, 1)


def _sum_of_rows(lines: Tensor, channels: int) -> Tensor:
    """Sum of rows of channels, one row after the other, in the precision of the values; (B, rows x C) to (C,)."""
    rows = lines.view(-1, channels)
    order = torch.arange(len(rows), device=rows.device)
    return F.embedding_bag(order, rows, order[:1], mode="sum")[0]


def batch_norm(values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise by the mean and the biased variance of the batch.

    torch's CPU kernel sums the statistics in double precision, one number after the other, and spends most of its time
    there. Here each feature map is a vector that is summed and multiplied by itself; the result differs by a few
    roundings. Values in 16 bits, on another device, or laid out otherwise than one feature map after the other go to
    torch.

    Args:
        values: (B, C, ...).
        weight: gamma, (C,); None for 1.
        bias: beta, (C,); None for 0.
        eps: added to the biased variance.

    Returns:
        (B, C, ...), in the dtype of `values`.
    """
    is_precise = values.dtype in (torch.float32, torch.float64)
    if values.device.type == "cpu" and is_precise and values.ndim > 2 and values.is_contiguous():
        normalised: Tensor = _ByMaps.apply(values, weight, bias, eps)
        return normalised
    return F.batch_norm(values, None, None, weight, bias, True, 0.0, eps)


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
    normalised: Tensor = _Sequential.apply(values, weight, bias, eps)
    return normalised
