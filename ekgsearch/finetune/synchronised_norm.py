"""Batch statistics over all processes that train together: torch's module on GPUs, an own one elsewhere.

torch's SyncBatchNorm runs on accelerators only. The module here does the same over any process group, so that training
on several processes without GPUs can be compared with one process on the whole batch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.finetune.world import World


class _GlobalNormalise(torch.autograd.Function):
    """Normalise by mean and variance over all processes; both passes exchange two numbers per channel."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(values.dim()) if axis != 1]
        here = values.float()
        variance, mean = torch.var_mean(here, axes, correction=0)
        count = here.numel() // here.shape[1]
        mine = torch.stack([mean.double(), variance.double(), torch.full_like(mean, count, dtype=torch.float64)])
        parts = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, mine)
        means, variances, counts = torch.stack(parts).unbind(1)
        total = counts.sum(0)
        mean64 = (means * counts).sum(0) / total
        variance64 = ((variances + (means - mean64).square()) * counts).sum(0) / total
        mean, variance = mean64.to(here.dtype), variance64.to(here.dtype)
        normalised = nn.functional.batch_norm(here, mean, variance, weight, bias, training=False, eps=eps)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(here, mean, scale, weight, total)
        ctx.has_bias, ctx.axes = bias is not None, axes
        ctx.mark_non_differentiable(mean, variance, total)
        return normalised.to(values.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        values, mean, scale, weight, total = ctx.saved_tensors
        shape = [1, -1] + [1] * (values.dim() - 2)
        incoming = gradient.to(values.dtype)
        standard = (values - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = incoming.sum(ctx.axes), (incoming * standard).sum(ctx.axes)
        sums = torch.stack([of_bias, of_weight]).double()
        distributed.all_reduce(sums)
        share, share_standard = (sums / total).to(values.dtype)
        factor = scale if weight is None else scale * weight
        of_values = incoming - share.view(shape) - standard * share_standard.view(shape)
        return (
            (of_values * factor.view(shape)).to(gradient.dtype),
            None if weight is None else of_weight,
            of_bias if ctx.has_bias else None,
            None,
        )


class SynchronisedNorm(_BatchNorm):
    """Batch normalisation whose batch is that of all processes; its parameters and statistics are another module's."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SynchronisedNorm":
        """Share the parameters and running statistics of a batch norm."""
        new = cls(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        new.affine, new.track_running_stats, new.training = norm.affine, norm.track_running_stats, norm.training
        new.weight, new.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            new.register_buffer(name, getattr(norm, name))
        return new

    def _check_input_dim(self, values: Tensor) -> None:
        if values.dim() < 2:
            raise ValueError(f"expected values (B, C, ...), found shape {tuple(values.shape)}")

    def forward(self, values: Tensor) -> Tensor:
        """Normalise values (B, C, ...); in training mode every process must call it at the same place."""
        if not self.training:
            running: Tensor = super().forward(values)
            return running
        self._check_input_dim(values)
        normalised: Tensor
        normalised, mean, variance, total = _GlobalNormalise.apply(values, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * (total / (total - 1)).to(variance.dtype))
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise_norms(network: nn.Module, world: World) -> Callable[[], None]:
    """Let every batch norm below a module take its statistics over all processes.

    Parameters and running statistics stay the same tensors. Alone, nothing changes.

    Args:
        network: module that contains the batch norms; changed in place.
        world: this process.

    Returns:
        A function that puts the batch norms back.
    """
    places: list[tuple[nn.Module, str, nn.Module]] = []
    if world.size > 1:
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm):
                    places.append((parent, name, child))
    for parent, name, child in places:
        if world.device.type == "cuda":
            setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
        else:
            assert isinstance(child, _BatchNorm)
            setattr(parent, name, SynchronisedNorm.of(child))

    def put_back() -> None:
        for parent, name, child in places:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)

    return put_back


def has_norms(network: nn.Module) -> bool:
    """Whether a network normalises by batch statistics, so that its results depend on who shares a batch."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
