"""Kernels of a sub-network: masked or cut, at the Frobenius norm of the uncut kernel."""

import torch
from torch import Tensor, nn

from ekgsearch.channels.members import Layer

_SMALLEST_SQUARE = 1e-12  # keeps the division finite where only zeros are kept


def at_uncut_norm(kernel: Tensor, original: Tensor) -> Tensor:
    """Scale a masked or cut kernel to the Frobenius norm of the original one, over the whole tensor.

    W' = (W * M) * ||W||_F / ||W * M||_F; source: EKG (arXiv 2203.02651), sec. 3.

    Args:
        kernel: masked or cut kernel.
        original: uncut kernel.
    """
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    square = torch.linalg.vector_norm(kernel, dtype=dtype).square().clamp(min=_SMALLEST_SQUARE)
    scale: Tensor = torch.linalg.vector_norm(original, dtype=dtype) / square.sqrt()
    return kernel * scale.to(kernel.dtype)


def axes(layer: Layer) -> tuple[int | None, int | None]:
    """Axes of a layer's weight that its output and input channels lie on; None where an axis is not cut.

    A depthwise kernel has its channels on axis 0 only.
    """
    if layer.is_depthwise:
        return 0, None
    return (1, 0) if isinstance(layer.module, nn.ConvTranspose2d) else (0, 1)


def channel_lines(layer: Layer) -> tuple[Tensor, Tensor]:
    """Classes along the output and input axes of a layer's weight, in that order.

    A grouped convolution's weight holds the input channels of one of its groups only (transposed: the output channels);
    all its groups lose the same ones.
    """
    groups = getattr(layer.module, "groups", 1)
    outputs, inputs = layer.outputs, layer.inputs
    if groups > 1 and not layer.is_depthwise:
        if isinstance(layer.module, nn.ConvTranspose2d):
            outputs = outputs[: len(outputs) // groups]
        else:
            inputs = inputs[: len(inputs) // groups]
    if layer.is_depthwise and isinstance(layer.module, nn.ConvTranspose2d):
        outputs = inputs  # (C, multiplier, k, k): the channels of the input lie on axis 0
    return outputs, inputs


def cut(tensor: Tensor, axis: int, keep: Tensor) -> Tensor:
    """Keep the channels of a tensor for which a bool vector along one axis is true."""
    return tensor.index_select(axis, keep.nonzero().flatten().to(tensor.device))
