"""Exemplars of the filters of whole networks: the affinity propagation of EPruner against scikit-learn's.

Both sides start from the same filters in float64, of which none are equal, and end with the indices of the exemplars at
every beta, which are compared. The other side is what the published program does for every layer and beta: distances,
medians, and `sklearn.cluster.AffinityPropagation` with its defaults. A second comparison lets scikit-learn have what is
shared here: distances and medians once per layer, and the messages alone per beta (`affinity_propagation`). Pairs are
interleaved; all runs on one thread, and the clock is the processor time of the process.

How many pairs of filters exchange messages depends on the filters. Those of random weights are all equally far from
each other, so that at most betas none do, and trained networks are the harder case: of the two wide networks, VGG-16
has random weights, and the other is trained.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import AffinityPropagation, affinity_propagation
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import euclidean_distances
from threadpoolctl import threadpool_limits

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bench.base import BenchSettings, Measurement, abab, ratio
from ekgsearch.errors import JobError
from ekgsearch.fields import Mark, Positive, Text, expand_path
from ekgsearch.maths.affinity import exemplars
from ekgsearch.maths.similarity import Similarity, representatives
from ekgsearch.storage.tensors import load_tensors

Filters = NDArray[np.float64]
Beta = Annotated[float, Field(gt=0, le=1)]
Kept = list[tuple[int, ...]]

FIRST_OF_BLOCK = ".conv1."
"""In the names of the convolutions of a CIFAR ResNet that EPruner prunes."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["epruner"]
    weights: Annotated[Text | None, Mark.PATH] = Field(
        None, description="safetensors file of a trained ResNet-56 for CIFAR; null: random weights"
    )
    beta: Beta = Field(0.76, description="beta at which its blocks are clustered")
    wide_weights: Annotated[Text | None, Mark.PATH] = Field(
        None, description="safetensors file of a trained network with wide layers; null leaves it out"
    )
    betas: tuple[Beta, ...] = Field(
        (0.5, 0.6, 0.65, 0.7, 0.73, 0.76, 0.8, 0.9, 1.0),
        min_length=1,
        description="betas at which VGG-16 with random weights, and the wide network, are clustered",
    )
    pairs: Positive = Field(5, description="interleaved pairs of each comparison")

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """One pair at one beta; the wide network is left out, and weights that are missing are random."""
        small: dict[str, Any] = {"wide_weights": None, "betas": self.betas[:1], "pairs": 1}
        if self.weights is None:
            return small, ()
        try:
            path = expand_path(self.weights, "weights")
            missing = "" if path.is_file() else f"weights = {self.weights}: there is no file {path}"
        except JobError as error:
            missing = str(error)
        return (small | {"weights": None}, (f"{missing}; random weights take their place",)) if missing else (small, ())


def run(settings: Settings) -> Iterator[Measurement]:
    """Cluster every network.

    Raises:
        JobError: a weights file has no such convolutions, or its path names a variable that is not set.
        StorageError: a weights file is missing or damaged.
    """
    with threadpool_limits(1):
        filters, name = _filters("resnet56", settings.weights, "weights", FIRST_OF_BLOCK)
        yield from _compare(f"{name}, first convolutions of the blocks", filters, (settings.beta,), settings.pairs)
        filters, name = _filters("vgg16", None, "", "")
        yield from _compare(name, filters, settings.betas, settings.pairs)
        if settings.wide_weights is not None:
            filters, name = _filters("", settings.wide_weights, "wide_weights", "")
            yield from _compare(name, filters, settings.betas, settings.pairs)


def _filters(net: str, weights: str | None, field: str, part: str) -> tuple[list[Filters], str]:
    """Distinct filters of every convolution that is not depthwise, and the name of the network.

    Args:
        net: network of the zoo that is built without weights.
        weights: safetensors file.
        field: where it is named.
        part: text in the names of the convolutions.
    """
    if weights is None:
        tensors, name = build(zoo_factory(net, 10, (3, 32, 32)), seed=0).state_dict(), f"{net}, random weights"
    else:
        path = expand_path(weights, field)
        tensors, name = load_tensors(path, require_checksum=False)[0], path.stem
    found = [tensor for key, tensor in tensors.items() if tensor.ndim == 4 and tensor.shape[1] > 1 and part in key]
    if not found:
        raise JobError(f"{field} = {weights}: expected weights of convolutions with '{part}' in their name, found none")
    layers = [tensor.flatten(1).double().numpy() for tensor in found]
    return [layer[representatives(layer)] for layer in layers], name


def _compare(name: str, layers: Sequence[Filters], betas: Sequence[float], pairs: int) -> Iterator[Measurement]:
    case = f"{name}, " + (f"beta {betas[0]:g}" if len(betas) == 1 else f"{len(betas)} betas")
    ours, theirs = partial(_ours, layers, betas), partial(_theirs, layers, betas)
    shared = partial(_theirs_shared, layers, betas)
    found, expected = ours(), theirs()
    yield Measurement.count(case, "layers", "", len(layers))
    yield Measurement.count(case, "filters kept", "share", _share_kept(found, layers, betas))
    same = sum(one == other for one, other in zip(found, expected, strict=True))
    yield Measurement.count(case, "exemplars as scikit-learn's", "share", same / len(expected))
    slow, fast = abab(theirs, ours, pairs=pairs, clock=time.process_time)
    yield Measurement.of(case, "scikit-learn", "s", slow)
    yield Measurement.of(case, "ekgsearch", "s", fast)
    yield ratio(case, "scikit-learn / ekgsearch", slow, fast)
    yield ratio(case, "scikit-learn, shared distances / ekgsearch", *abab(shared, ours, pairs=pairs))


def _share_kept(found: Kept, layers: Sequence[Filters], betas: Sequence[float]) -> float:
    return sum(map(len, found)) / sum(map(len, layers)) / len(betas)


def _ours(layers: Sequence[Filters], betas: Sequence[float]) -> Kept:
    similarities = [Similarity.of(filters) for filters in layers]
    found = exemplars([one for one in similarities for _ in betas], [*betas] * len(layers))
    return [one.kept for one in found]


def _theirs(layers: Sequence[Filters], betas: Sequence[float]) -> Kept:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for filters in layers:
            for beta in betas:
                preference = beta * np.median(-euclidean_distances(filters, squared=True), axis=0)
                model = AffinityPropagation(preference=preference, random_state=0).fit(filters)
                found.append(tuple(int(index) for index in model.cluster_centers_indices_))
    return found


def _theirs_shared(layers: Sequence[Filters], betas: Sequence[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for filters in layers:
            similarity = -euclidean_distances(filters, squared=True)
            medians = np.median(similarity, axis=0)
            for beta in betas:
                affinity_propagation(similarity, preference=beta * medians, copy=True, random_state=0)
