"""Exemplars against scikit-learn's, on filters of trained networks and on points made to be difficult (P1 to P5)."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.spatial.distance import cdist
from sklearn.cluster import AffinityPropagation
from sklearn.exceptions import ConvergenceWarning

from ekgsearch.errors import NetworkError
from ekgsearch.maths.affinity import DAMPINGS, Exemplars, exemplars
from ekgsearch.maths.similarity import Similarity, representatives, similarities

Floats = NDArray[np.float64]

BETAS = (0.5, 0.6, 0.65, 0.7, 0.73, 0.76, 0.8, 0.9, 1.0)


def filters_of(path: Path) -> list[Floats]:
    """Filters of every convolution of a network that is not depthwise."""
    tensors = [tensor for tensor in load_file(path).values() if tensor.ndim == 4 and tensor.shape[1] > 1]
    return [tensor.reshape(len(tensor), -1).astype(np.float64) for tensor in tensors]


def clustered(size: int, dimensions: int = 20, seed: int = 0) -> Floats:
    """Points around a few centres, of which none is equally far from two others."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, size // 5), dimensions))
    points: Floats = centres[generator.integers(0, len(centres), size)] + 0.8 * generator.normal(
        size=(size, dimensions)
    )
    return points


def as_scikit_learn(
    points: Floats, beta: float, *, damping: float = 0.5, seed: int = 0, is_gram: bool = True
) -> Exemplars:
    """Cluster as the published program does; with `is_gram` scikit-learn computes the distances, too."""
    similarity = -cdist(points, points, "sqeuclidean")
    model = AffinityPropagation(
        damping=damping,
        max_iter=200,
        convergence_iter=15,
        preference=beta * np.median(similarity, axis=0),
        affinity="euclidean" if is_gram else "precomputed",
        random_state=seed,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(points if is_gram else similarity)
    kept = tuple(int(index) for index in model.cluster_centers_indices_)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return Exemplars(kept=kept, converged=converged, sweeps=model.n_iter_, damping=damping)


def at_betas(layers: Sequence[Floats], betas: Sequence[float] = BETAS) -> list[list[Exemplars]]:
    """Exemplars of all layers at all betas in one call: a list per layer."""
    compared = [Similarity.of(filters) for filters in layers]
    found = exemplars([one for one in compared for _ in betas], [*betas] * len(layers))
    return [found[start : start + len(betas)] for start in range(0, len(found), len(betas))]


def alone(points: Any, beta: float) -> Exemplars:
    return exemplars([Similarity.of(np.array(points, dtype=np.float64))], [beta])[0]


@pytest.mark.parametrize(
    "name", ["resnet20_cifar10_optionA", "resnet32_cifar10_optionA", "resnet56_cifar10_optionA", "resnet56_cifar10_ekg"]
)
def test_exemplars_and_sweeps_of_trained_networks_are_those_of_scikit_learn(name: str, data_dir: Path) -> None:
    layers = filters_of(data_dir / "weights" / f"{name}.safetensors")
    for filters, found in zip(layers, at_betas(layers), strict=True):
        assert found == [as_scikit_learn(filters, beta) for beta in BETAS]


def test_so_they_are_where_scikit_learn_is_given_distances_from_differences(data_dir: Path) -> None:
    layers = filters_of(data_dir / "weights" / "resnet56_cifar10_ekg.safetensors")
    for filters, found in zip(layers, at_betas(layers), strict=True):
        assert found == [as_scikit_learn(filters, beta, is_gram=False) for beta in BETAS]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_exemplars_of_wide_layers_are_those_of_scikit_learn(data_dir: Path) -> None:
    """Up to 1280 filters, some of them zero; of these the first stands for all (2.8)."""
    layers = filters_of(data_dir / "weights" / "mobilenet_v2_imagenet_dequantised.safetensors")
    for filters, found in zip(layers, at_betas(layers), strict=True):
        distinct = representatives(filters)
        for beta, one in zip(BETAS, found, strict=True):
            expected = as_scikit_learn(filters[distinct], beta)
            assert one.kept == tuple(distinct[list(expected.kept)].tolist())
            assert (one.converged, one.sweeps) == (expected.converged, expected.sweeps)


def test_exemplars_of_points_with_many_ties_are_those_of_scikit_learn() -> None:
    """Points of a small grid, whose distances are exact integers; a part never converges."""
    generator = np.random.default_rng(0)
    points = [np.unique(generator.integers(0, 3, (generator.integers(2, 14), 3)), axis=0) for _ in range(60)]
    points += [np.array([*itertools.product((0, 1), repeat=4)]), np.array([*itertools.product(range(5), repeat=2)])]
    expected = [[as_scikit_learn(one.astype(float), beta) for beta in BETAS] for one in points]
    found = at_betas([one.astype(float) for one in points])
    pairs = [pair for lists in zip(found, expected, strict=True) for pair in zip(*lists, strict=True)]
    assert [one for one, other in pairs if other.kept] == [other for _, other in pairs if other.kept]
    assert {(other.converged, other.sweeps > 16) for _, other in pairs} == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize("size", [3, 40, 150])
def test_permuted_filters_have_permuted_exemplars(size: int) -> None:
    points = clustered(size)
    order = np.random.default_rng(1).permutation(size)
    for found, permuted in zip(at_betas([points])[0], at_betas([points[order]])[0], strict=True):
        assert sorted(order[list(permuted.kept)].tolist()) == list(found.kept)


@pytest.mark.parametrize("change", [lambda x: x * 2.0**-40, lambda x: x * 1024, lambda x: x + np.linspace(-9, 5, 20)])
def test_a_power_of_two_and_a_constant_vector_change_no_exemplar(change: Any) -> None:
    points = clustered(60)
    kept = [found.kept for found in at_betas([points])[0]]
    assert [found.kept for found in at_betas([change(points)])[0]] == kept
    assert len(set(kept)) > 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_seeds_of_the_noise_give_the_same_exemplars(seed: int) -> None:
    points = clustered(50)
    found = at_betas([points])[0]
    assert [one.kept for one in found] == [as_scikit_learn(points, beta, seed=seed).kept for beta in BETAS]
    assert at_betas([points])[0] == found


def test_all_distinct_filters_are_kept_as_beta_goes_to_zero() -> None:
    points = clustered(45)
    points[[7, 30]] = points[2]
    assert alone(points, 1e-9).kept == tuple(index for index in range(45) if index not in (7, 30))


def test_a_larger_beta_keeps_fewer_filters_of_a_trained_network(data_dir: Path) -> None:
    layers = filters_of(data_dir / "weights" / "resnet56_cifar10_ekg.safetensors")
    found = at_betas(layers, (0.4, 0.6, 0.8, 1.0))
    totals = [sum(len(one.kept) for one in at_beta) for at_beta in zip(*found, strict=True)]
    assert totals == sorted(set(totals), reverse=True)
    for filters, of_layer in zip(layers, found, strict=True):
        assert all(1 <= len(one.kept) <= len(filters) for one in of_layer)


@pytest.mark.parametrize(
    ("points", "beta", "kept"),
    [
        ([[3.0, 1.0]], 0.7, (0,)),
        ([[0.0, 0.0]], 1.0, (0,)),
        ([[1.0, 0.0], [2.0, 5.0]], 1.0, (0, 1)),
        ([[1.0, 0.0], [2.0, 5.0]], 2.0, (0,)),
        ([[1.0, 2.0]] * 5, 0.5, (0,)),
        (np.eye(4), 0.9, (0, 1, 2, 3)),
        (np.eye(4), 1.0, (0,)),
        ([[0.0, -0.0], [1.0, 0.0], [-0.0, 0.0], [0.0, 0.0]], 0.5, (0, 1)),
        ([[4.0, 1.0], [5.0, 1.0], [4.0, 1.0], [5.0, 1.0], [4.0, 2.0]], 0.01, (0, 1, 4)),
    ],
)
def test_few_equal_and_zero_filters(points: Any, beta: float, kept: tuple[int, ...]) -> None:
    assert alone(points, beta) == Exemplars(kept=kept, converged=True, sweeps=alone(points, beta).sweeps)


def test_of_a_layer_with_mostly_zero_filters_the_others_are_clustered_with_one_of_them() -> None:
    points = np.zeros((40, 20))
    points[5:20] = clustered(15)
    found = alone(points, 0.8)
    expected = as_scikit_learn(points[[0, *range(5, 20)]], 0.8)
    assert found.kept == tuple([0, *range(5, 20)][index] for index in expected.kept)
    assert 1 < len(found.kept) < 16


@pytest.mark.parametrize(
    ("points", "beta", "damping"),
    [
        ([[-2, 2, 2], [0, -1, 0], [0, 1, 0], [2, -2, -2]], 0.7, 0.7),
        (
            [[-1, -1, 0], [-1, 1, 0], [0, -1, -1], [0, -1, 1], [0, 1, -1], [0, 1, 1], [1, -1, 0], [1, 1, 0]],
            0.7,
            0.7,
        ),
        (sorted([*np.roll([0, -2, 1, -1], turn).tolist(), side] for side in (1, -1) for turn in range(4)), 0.6, None),
    ],
    ids=["converges", "does not converge", "has none"],
)
def test_without_exemplars_more_damping_is_tried_and_then_everything_kept(
    points: Any, beta: float, damping: float | None
) -> None:
    """Symmetric points, found by trying many, whose messages swing."""
    points = np.array(points, dtype=float)
    assert as_scikit_learn(points, beta).kept == ()
    if damping is None:
        assert {as_scikit_learn(points, beta, damping=more).kept for more in DAMPINGS} == {()}
        everything = tuple(range(len(points)))
        expected = Exemplars(kept=everything, converged=False, sweeps=200, damping=DAMPINGS[-1], has_none=True)
    else:
        expected = as_scikit_learn(points, beta, damping=damping)
    other = clustered(len(points))
    found = exemplars([Similarity.of(other), Similarity.of(points)], [0.8, beta])
    assert found == [as_scikit_learn(other, 0.8), expected]


def test_batches_of_layers_come_out_as_each_layer_alone() -> None:
    layers = [clustered(size, seed=seed) for seed in range(6) for size in (3, 16, 64, 200)]
    layers[5][3] = layers[5][9]  # fifteen distinct filters among layers of sixteen
    for filters, found in zip(layers, at_betas(layers), strict=True):
        assert found == [alone(filters, beta) for beta in BETAS]
        assert len({one.sweeps for one in found}) > 1 or len(filters) == 3


def test_distances_of_close_points_keep_their_digits() -> None:
    """From the Gram matrix alone, those of the first three would be noise."""
    points = np.random.default_rng(0).normal(size=(50, 300))
    points[1] = points[0] + 1e-9 * points[7]
    points[2] = points[0]
    points[3] = points[0] + 0.01 * points[8]
    found = similarities(points)
    differences = points[:, None].astype(np.longdouble) - points
    expected = -(differences**2).sum(axis=2)
    assert (found == found.T).all()
    assert (found.diagonal() == 0).all()
    assert found[0, 2] == 0
    assert found == pytest.approx(expected.astype(np.float64), rel=1e-9, abs=0)
    assert Similarity.of(points).distinct.tolist() == [0, 1, *range(3, 50)]


def test_filters_of_float32_are_compared_in_float64() -> None:
    points = clustered(30).astype(np.float32)
    similarity = Similarity.of(points)
    assert (similarity.values == Similarity.of(points.astype(np.float64)).values).all()
    assert similarity.medians == pytest.approx(np.median(similarities(points.astype(np.float64)), axis=0), rel=1e-15)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e200])
def test_numbers_that_have_no_distance_are_refused(value: float) -> None:
    points = clustered(5)
    points[3, 1] = value
    with pytest.raises(NetworkError, match="found others in filter 3"):
        Similarity.of(points)
