"""Batch normalisation whose sums are added up one after the other, as the program published with EKG adds them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


class _SequentialSum(torch.autograd.Function):
    """Sum over all axes but axis 1; only the forward pass is sequential."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.shape = values.shape
        rows = values.detach().movedim(1, -1).reshape(-1, values.shape[1]).contiguous().cpu().numpy()
        if rows.shape[1] == 1:  # numpy sums a single column in pairs
            rows = np.repeat(rows, 2, axis=1)
        total = torch.from_numpy(np.add.reduce(rows, axis=0, dtype=rows.dtype)[: values.shape[1]])
        return total.to(values.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return per_channel(gradients[0], len(ctx.shape)).expand(ctx.shape)


def sequential_batch_norm(values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise by the statistics of the batch, summed one element after the other in the precision of the values.

    TensorFlow's CPU kernels (Eigen) add the elements of a channel in the order batch, height, width into one
    accumulator, first for the mean, then for the variance. A sum of 262,144 positive float32 numbers is then wrong by
    up to 1e-4, which moves logits of ResNet-56 by 3e-4 and, where predictions are nearly perfect, importance by 1 %;
    torch sums in double precision. Differentiable; the backward pass sums as torch does, which makes no difference.

    Args:
        values: (B, C, ...).
        weight: gamma, (C,); None for 1.
        bias: beta, (C,); None for 0.
        eps: added to the biased variance.

    Returns:
        (B, C, ...), in the dtype of `values`.
    """
    total = _SequentialSum.apply
    scale = values.new_tensor(1.0) / (values.numel() // values.shape[1])
    centred = values - per_channel(total(values) * scale, values.ndim)
    factor = torch.rsqrt(total(centred * centred) * scale + eps)
    if weight is not None:
        factor = factor * weight
    normalised = centred * per_channel(factor, values.ndim)
    return normalised if bias is None else normalised + per_channel(bias, values.ndim)


def per_channel(vector: Tensor, ndim: int) -> Tensor:
    """View a vector (C,) so that it broadcasts over values (B, C, ...) of `ndim` axes."""
    return vector.view(1, -1, *[1] * (ndim - 2))
