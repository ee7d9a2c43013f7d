"""How curved the loss of a network is along its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ekgsearch.channels.norm import norm_mode
from ekgsearch.errors import NumericsError
from ekgsearch.maths.lanczos import extreme_eigenvalues


@dataclass(frozen=True, slots=True)
class Landscape:
    """The loss of a network around its weights.

    Attributes:
        loss: mean cross-entropy at the weights, nats per image, batch statistics.
        eigenvalue_ratio: |lowest / highest eigenvalue| of the Hessian, mean over the points.
        relative: |weights| |df/dt| / (|g| f), the relative condition number, mean over the points.
    """

    loss: float
    eigenvalue_ratio: float
    relative: float


def measure_landscape(
    network: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    points: int,
    radius: float,
    iterations: int,
    seed: int,
) -> Landscape:
    """Measure the loss along the gradient direction: at w + t g, t equally spaced in [-radius, radius].

    The paper's supplement names a condition number without a formula; the ratio of the Hessian's extreme eigenvalues
    is a reading of it (0 where the loss is convex but for rounding, near 1 where it curves down as much as up).

    Args:
        network: its weights w are not changed; normalisation is by the statistics of each batch.
        batches: pairs of normalised images (B, 3, H, W) and labels (B,) int64.
        points: number of points.
        radius: largest |t|.
        iterations: Lanczos iterations per point.
        seed: of the start vector, the same at every point.

    Raises:
        NumericsError: the loss or its gradient is not finite at a point.
    """
    names = [name for name, _ in network.named_parameters()]
    start = [parameter.detach() for parameter in network.parameters()]
    images = sum(len(labels) for _, labels in batches)

    def loss_at(weights: Sequence[Tensor]) -> Tensor:
        by_name = dict(zip(names, weights, strict=True))
        terms = [
            F.cross_entropy(functional_call(network, by_name, (inputs,)), labels, reduction="sum")
            for inputs, labels in batches
        ]
        return torch.stack(terms).sum() / images

    with norm_mode(network, "batch"), torch.enable_grad():
        weights = [tensor.clone().requires_grad_() for tensor in start]
        loss = loss_at(weights)
        direction = torch.autograd.grad(loss, weights)
        length = _flat(direction).norm()
        ratios, relatives = [], []
        for step in torch.linspace(-radius, radius, points).tolist():
            weights = [(tensor + step * along).requires_grad_() for tensor, along in zip(start, direction, strict=True)]
            here = loss_at(weights)
            gradient = _flat(torch.autograd.grad(here, weights, create_graph=True))

            def product(vector: Tensor, weights: Sequence[Tensor] = weights, gradient: Tensor = gradient) -> Tensor:
                along = vector.to(gradient.dtype)
                return _flat(torch.autograd.grad(gradient @ along, weights, retain_graph=True))

            if not bool(torch.isfinite(gradient.detach()).all() & torch.isfinite(here.detach())):
                raise NumericsError(
                    f"the loss or its gradient is not a finite number at {step:+.3g} times the gradient; "
                    "choose a smaller study.radius, or check the weights"
                )
            lowest, highest = extreme_eigenvalues(
                product, len(gradient), iterations=iterations, seed=seed, device=gradient.device
            )
            ratios.append(abs(lowest / highest) if highest else 0.0)
            slope = (gradient.detach() @ _flat(direction)).abs()
            size = _flat([tensor.detach() for tensor in weights]).norm()
            relatives.append(float(size * slope / (length * here.detach())))
    return Landscape(float(loss.detach()), sum(ratios) / points, sum(relatives) / points)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
