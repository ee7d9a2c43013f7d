"""Batch normalisation by feature maps and by sequential sums, against a loop and against torch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ekgsearch.maths.batch_norm import batch_norm, sequential_batch_norm

Norm = Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]


def one_after_the_other(values: Tensor) -> Tensor:
    """Statistics by a loop over batch, height and width with one float32 accumulator per channel."""
    rows = values.movedim(1, -1).reshape(-1, values.shape[1]).numpy()
    count = np.float32(1) / np.float32(len(rows))
    total = np.zeros(values.shape[1], np.float32)
    for row in rows:
        total = total + row
    centred = rows - total * count
    squares = np.zeros(values.shape[1], np.float32)
    for row in centred:
        squares = squares + row * row
    normalised = torch.from_numpy(centred) * torch.rsqrt(torch.from_numpy(squares * count) + 1e-5)
    return normalised.view(values.movedim(1, -1).shape).movedim(-1, 1)


@pytest.mark.parametrize("shape", [(9, 5, 7, 6), (40, 1, 8, 8), (33, 4)])
def test_statistics_are_sums_over_one_element_after_the_other(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 50
    found = sequential_batch_norm(values, None, None, 1e-5)
    torch.testing.assert_close(found, one_after_the_other(values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [batch_norm, sequential_batch_norm])
@pytest.mark.parametrize("affine", [True, False])
def test_in_double_precision_value_and_gradient_are_those_of_torch(norm: Norm, affine: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(6, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    given = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    weight, bias = given if affine else (None, None)
    upstream = torch.randn(6, 3, 4, 5, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.batch_norm(values, None, None, weight, bias, True, 0.0, 1e-5)
    found = norm(values, weight, bias, 1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (by_torch,) = torch.autograd.grad(expected, values, upstream)
    (ours,) = torch.autograd.grad(found, values, upstream)
    torch.testing.assert_close(ours, by_torch, rtol=1e-10, atol=1e-10)


def test_the_rounding_of_long_sums_shows_and_torch_does_not_have_it() -> None:
    values = torch.rand(64, 2, 64, 64, generator=torch.Generator().manual_seed(2)) + 100
    exact = torch.nn.functional.batch_norm(values.double(), None, None, None, None, True, 0.0, 1e-5)
    by_torch = torch.nn.functional.batch_norm(values, None, None, None, None, True, 0.0, 1e-5)
    sequential = sequential_batch_norm(values, None, None, 1e-5)
    assert (sequential - exact).abs().max() > 10 * (by_torch - exact).abs().max()


@pytest.mark.parametrize("shape", [(64, 5, 32, 32), (7, 1, 3, 3), (300, 13, 1, 1), (12, 4, 50)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_sums_by_feature_maps_are_as_precise_as_torch(shape: tuple[int, ...], offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator) + offset
    weight, bias = torch.rand(2, shape[1], generator=generator)
    exact = torch.nn.functional.batch_norm(values.double(), None, None, weight.double(), bias.double(), True, 0.0, 1e-5)
    by_torch = torch.nn.functional.batch_norm(values, None, None, weight, bias, True, 0.0, 1e-5)
    error = (batch_norm(values, weight, bias, 1e-5) - exact).abs().max()
    assert error <= 4 * (by_torch - exact).abs().max() + 1e-6


def test_a_layout_with_channels_last_and_16_bits_go_to_torch() -> None:
    values = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(4))
    for other in (values.contiguous(memory_format=torch.channels_last), values.bfloat16(), values[:, :, 0, 0]):
        by_torch = torch.nn.functional.batch_norm(other, None, None, None, None, True, 0.0, 1e-5)
        found = batch_norm(other, None, None, 1e-5)
        assert torch.equal(found, by_torch)
        assert found.stride() == by_torch.stride()
