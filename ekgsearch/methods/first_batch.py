"""A comparison of a fast evaluation with the masked network on the first images, before anything is decided."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.sliced import SlicedNetwork
from ekgsearch.errors import NetworkError
from ekgsearch.methods.base import Candidate
from ekgsearch.records import NormMode, Subnetwork

NUM_IMAGES = 32
"""Images of the first batch that are compared: what is wrong is wrong for every image."""

FEWEST_IMAGES = 8
"""A smaller batch is not compared: batch statistics of a few values make much of rounding."""

NUM_CANDIDATES = 4
"""Candidates of the first evaluation that are compared."""

TOLERANCE = 1e-2
"""Allowed difference as a share of the whole (both as Euclidean lengths), in exact arithmetic: room for rounding."""

COARSE_TOLERANCE = 0.75
"""The same in coarser numbers or compiled steps: scores in bfloat16 differ by 0.23 on a ResNet-56 (CIFAR-10), and what
has nothing to do with the scores differs by 1 and more."""


class FirstBatch:
    """Compares a fast evaluation with the masked network, scores and candidates once each.

    In coarse arithmetic the same slicing is compared in exact arithmetic too, where little is allowed.

    Args:
        sliced: the fast evaluation.
        masked: the reference.
        norm_mode: how batch norms are computed.
    """

    def __init__(self, sliced: SlicedNetwork, masked: MaskedNetwork, norm_mode: NormMode) -> None:
        self._masked = masked
        self._norm_mode: NormMode = norm_mode
        self._compared = [(sliced, TOLERANCE if sliced.arithmetic == EXACT else COARSE_TOLERANCE)]
        if sliced.arithmetic != EXACT:
            self._compared.append((SlicedNetwork(sliced.graph, sliced.below), TOLERANCE))
        self._has_scores = self._has_candidates = False

    def check_scores(self, images: Tensor, current: Subnetwork) -> None:
        """Compare the scores of all channels, for the cross-entropy to arbitrary labels, at the first call.

        Args:
            images: normalised float images (B, C, H, W), the first of which are used.
            current: the sub-network.

        Raises:
            NetworkError: they differ by more than rounding.
        """
        if self._has_scores or len(images) < FEWEST_IMAGES:
            return
        few = images[:NUM_IMAGES]

        def loss(logits: Tensor) -> Tensor:
            labels = torch.arange(len(few), device=few.device) % logits.shape[1]
            return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)

        expected = self._masked.scores(few, loss, current, norm_mode=self._norm_mode)
        for sliced, tolerance in self._compared:
            prepared = sliced.preparation.whole(current)
            found = sliced.scores(few, loss, prepared, norm_mode=self._norm_mode)[1]
            _compare("scores of channels", found, expected, tolerance)
        self._has_scores = True

    def check_candidates(self, images: Tensor, current: Subnetwork, candidates: Sequence[Candidate]) -> None:
        """Compare the outputs of candidates, at the first call; arguments and errors as for `check_scores`."""
        if self._has_candidates or not candidates or len(images) < FEWEST_IMAGES:
            return
        few, chosen = images[:NUM_IMAGES], candidates[:NUM_CANDIDATES]
        expected = {one.group: self._masked.forward(few, one.subnetwork, norm_mode=self._norm_mode) for one in chosen}
        for sliced, tolerance in self._compared:
            standing = sliced.preparation.whole(current)
            branches = [(one.group, sliced.preparation.narrowed(standing, one.subnetwork, one.group)) for one in chosen]
            outputs = sliced.branches(few, standing, branches, norm_mode=self._norm_mode)
            found = {one.group: output for one, output in zip(chosen, outputs, strict=True)}
            _compare("outputs of candidates", found, expected, tolerance)
        self._has_candidates = True


def _compare(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    differences = {name: float((found[name].double() - tensor.double()).norm()) for name, tensor in expected.items()}
    whole = float(torch.tensor([float(tensor.double().norm()) for tensor in expected.values()]).norm())
    difference = float(torch.tensor(list(differences.values())).norm())
    if not difference <= tolerance * whole:
        worst = max(differences, key=differences.__getitem__)
        raise NetworkError(
            f"on the first images of the search the fast evaluation gives other {what} than the masked network: they "
            f"differ by {difference / max(whole, 1e-300):.1%} of the whole (allowed {tolerance:.0%}), most in channel "
            f"group {worst!r}; set search.evaluation to naive, which is slower and right, and report this network"
        )
