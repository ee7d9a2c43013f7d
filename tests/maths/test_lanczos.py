"""The Lanczos method against the whole spectrum."""

import pytest
import torch

from ekgsearch.maths.lanczos import extreme_eigenvalues


def symmetric(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return rotation @ torch.diag(values.double()) @ rotation.T


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_after_as_many_iterations_as_rows_both_ends_are_exact(size: int) -> None:
    matrix = symmetric(torch.randn(size, generator=torch.Generator().manual_seed(size)) * 5)
    lowest, highest = extreme_eigenvalues(lambda v: matrix @ v, size, iterations=size, seed=3)
    exact = torch.linalg.eigvalsh(matrix)
    assert (lowest, highest) == pytest.approx((float(exact[0]), float(exact[-1])), rel=1e-9)


def test_isolated_ends_are_found_in_30_products_and_never_left() -> None:
    values = torch.cat([torch.linspace(-0.1, 1, 400), torch.tensor([-3.0, 40.0])])
    matrix, products = symmetric(values), []

    def product(vector: torch.Tensor) -> torch.Tensor:
        products.append(vector)
        return matrix @ vector

    lowest, highest = extreme_eigenvalues(product, 402, iterations=30, seed=1)
    assert (lowest, highest) == pytest.approx((-3, 40), rel=1e-6)
    assert len(products) == 30
    assert extreme_eigenvalues(product, 402, iterations=30, seed=1) == (lowest, highest)
    for iterations in range(1, 10):
        lowest, highest = extreme_eigenvalues(product, 402, iterations=iterations, seed=1)
        assert -3 - 1e-9 <= lowest <= highest <= 40 + 1e-9


def test_a_matrix_with_two_different_eigenvalues_needs_two_products() -> None:
    matrix, products = symmetric(torch.tensor([2.0] * 10 + [-1.0] * 10)), []

    def product(vector: torch.Tensor) -> torch.Tensor:
        products.append(vector)
        return matrix @ vector

    assert extreme_eigenvalues(product, 20, iterations=20, seed=0) == pytest.approx((-1, 2), rel=1e-9)
    assert len(products) == 2
    assert extreme_eigenvalues(torch.zeros_like, 5, iterations=5, seed=0) == (0.0, 0.0)


def test_the_ends_of_a_wide_spectrum_are_exact_to_the_rounding_of_the_largest() -> None:
    """A basis that is made orthogonal once only is a hundred times worse for some start vectors."""
    matrix = symmetric(torch.logspace(0, 8, 40, dtype=torch.float64))
    for seed in range(30):
        found = extreme_eigenvalues(lambda v: matrix @ v, 40, iterations=40, seed=seed)
        assert found == pytest.approx((1, 1e8), rel=1e-14, abs=1e-6)
