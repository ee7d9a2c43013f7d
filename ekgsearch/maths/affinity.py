"""Exemplars of the filters of a layer by affinity propagation.

Source: EPruner (arXiv 2101.07985), with the similarities, preferences and rules of its program, which clusters with
scikit-learn: exemplars, and whether and after how many sweeps they converge, are those of
`sklearn.cluster.AffinityPropagation(damping=0.5, max_iter=200, convergence_iter=15, random_state=0)`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ekgsearch.maths.messages import Bools, Floats, Indices, Outcome, pass_messages
from ekgsearch.maths.similarity import Similarity

DAMPINGS = (0.5, 0.7, 0.9)
"""Dampings tried one after the other, until there is an exemplar."""

BATCH_NUMBERS = 2**17
"""Similarities whose messages are passed at a time: more would not stay in the cache of a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplars:
    """Filters that are kept in place of all.

    Attributes:
        kept: their indices among all filters of the layer, ascending, at least one.
        converged: whether they had stayed the same when the messages ended; else they are those of the last sweep.
        sweeps: sweeps made, with the last damping; 0 where the rule for equal similarities decides.
        damping: the last damping tried.
        has_none: no damping led to an exemplar, so all distinct filters are kept.
    """

    kept: tuple[int, ...]
    converged: bool
    sweeps: int
    damping: float = DAMPINGS[0]
    has_none: bool = False


def exemplars(layers: Sequence[Similarity], betas: Sequence[float]) -> list[Exemplars]:
    """Choose the exemplars of layers.

    Layers with equally many distinct filters are clustered in batches; each comes out as if it were alone. Besides the
    similarities of all layers this takes at most 60 bytes for each of the max(`BATCH_NUMBERS`, n^2) numbers of the
    largest batch: 16 MB for layers of up to 512 filters, 63 MB for 1024.

    Args:
        layers: similarities of each layer; the same ones may be given several times.
        betas: beta of each layer, > 0; the smaller, the more exemplars.

    Returns:
        The exemplars of each layer.
    """
    found: dict[int, Exemplars] = {}
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for index, (layer, beta) in enumerate(zip(layers, betas, strict=True)):
        if layer.uniform is None:
            by_size[len(layer.distinct)].append(index)
        else:
            is_all = beta * layer.medians[0] > layer.uniform
            found[index] = Exemplars(kept=_indices(layer.distinct[: None if is_all else 1]), converged=True, sweeps=0)
    for size, indices in by_size.items():
        indices.sort(key=lambda index: betas[index])  # similar betas leave similar numbers of pairs
        length = max(1, BATCH_NUMBERS // size**2)
        for start in range(0, len(indices), length):
            batch = indices[start : start + length]
            found |= zip(batch, _cluster([layers[i] for i in batch], [betas[i] for i in batch]), strict=True)
    return [found[index] for index in range(len(layers))]


def _cluster(layers: Sequence[Similarity], betas: Sequence[float]) -> list[Exemplars]:
    """Exemplars of layers with n >= 3 distinct filters each, not all equally similar."""
    matrices = np.stack([layer.values for layer in layers])
    diagonal = np.arange(matrices.shape[1])
    matrices[:, diagonal, diagonal] = [layer.preferences(beta) for layer, beta in zip(layers, betas, strict=True)]
    runs = [(DAMPINGS[0], outcome) for outcome in pass_messages(matrices, DAMPINGS[0])]
    for damping in DAMPINGS[1:]:
        for item, (_, outcome) in enumerate(runs):
            if not outcome.is_exemplar.any():
                runs[item] = damping, pass_messages(matrices[[item]], damping)[0]
    return [_exemplars(layer, matrix, *run) for layer, matrix, run in zip(layers, matrices, runs, strict=True)]


def _exemplars(layer: Similarity, matrix: Floats, damping: float, outcome: Outcome) -> Exemplars:
    has_none = not outcome.is_exemplar.any()
    chosen = layer.distinct if has_none else layer.distinct[_refine(matrix, outcome.is_exemplar)]
    return Exemplars(
        kept=_indices(chosen),
        converged=outcome.converged,
        sweeps=outcome.sweeps,
        damping=damping,
        has_none=has_none,
    )


def _refine(similarity: Floats, is_exemplar: Bools) -> Indices:
    """Replace each exemplar by the member of its cluster with the largest summed similarity to the cluster.

    Args:
        similarity: (n, n) with the preferences on the diagonal.
        is_exemplar: (n,), at least one; every other point belongs to the exemplar that it is most similar to.

    Returns:
        Indices of the exemplars, ascending.
    """
    chosen = np.flatnonzero(is_exemplar)
    cluster = similarity[:, chosen].argmax(axis=1)
    cluster[chosen] = np.arange(len(chosen))
    sizes = np.bincount(cluster)
    members_of = np.split(np.argsort(cluster, kind="stable"), np.cumsum(sizes)[:-1])
    for number in np.flatnonzero(sizes > 1):
        members = members_of[number]
        chosen[number] = members[similarity[members[:, None], members].sum(axis=0).argmax()]
    return np.sort(chosen)


def _indices(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
