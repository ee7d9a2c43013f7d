"""Extreme eigenvalues of a large symmetric matrix that is known by its products with vectors only."""

from collections.abc import Callable

import torch
from torch import Tensor


def extreme_eigenvalues(
    product: Callable[[Tensor], Tensor], size: int, *, iterations: int, seed: int, device: torch.device | None = None
) -> tuple[float, float]:
    """Estimate the lowest and highest eigenvalue by the Lanczos method with full reorthogonalisation.

    The estimates lie within the spectrum and widen with every iteration; they are exact after `size` iterations, or
    earlier where the start vector lies in a smaller invariant space. Source: Golub and Van Loan, "Matrix
    Computations", sec. 10.1.

    Args:
        product: maps a float64 vector (size,) to its product with the matrix, in any float dtype.
        size: order of the matrix, at least 1.
        iterations: largest number of products.
        seed: of the random start vector, which is drawn on the CPU.
        device: where the vectors live; None for the CPU.

    Returns:
        Lowest and highest Ritz value.
    """
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device or "cpu")
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(iterations, size)):
        residual = product(basis[-1]).double()
        diagonal.append(float(basis[-1] @ residual))
        known = torch.stack(basis)
        for _ in range(2):  # once is not enough where much cancels
            residual = residual - known.T @ (known @ residual)
        length = float(residual.norm())
        if length <= 1e-10 * max(abs(value) for value in [*diagonal, *beside, 1e-300]):
            break
        beside.append(length)
        basis.append(residual / length)
    num = len(diagonal)
    off = torch.tensor(beside[: num - 1], dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values = torch.linalg.eigvalsh(tridiagonal)
    return float(values[0]), float(values[-1])
