"""Run the sub-networks of a search on a batch: one by one as masked networks, or fast."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ekgsearch.channels.arithmetic import EXACT, Arithmetic
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.sliced import SlicedNetwork, Walk
from ekgsearch.methods.base import Candidate
from ekgsearch.methods.first_batch import FirstBatch
from ekgsearch.records import NormMode, Subnetwork

Evaluation = Literal["fast", "naive"]
"""How candidates are run: sharing what they have in common, or each by itself as a masked network."""

SLICE_BELOW = 0.9
"""Share of kept channels from which down a channel group is computed on its kept channels only."""

TIE_TOLERANCE = 1e-5
"""Share of the lowest score within which candidates nearly tie when removed channels are left out in float32."""


class Networks(Protocol):
    """Runs sub-networks in a batch mode; logits (B, classes) of normalised images (B, 3, H, W)."""

    masked: MaskedNetwork
    norm_mode: NormMode

    def forward(self, images: Tensor, subnetwork: Subnetwork) -> Tensor:
        """Logits of a sub-network."""
        ...

    def prepare(self, subnetwork: Subnetwork) -> Any:
        """What `scores` needs of a sub-network whatever the batch."""
        ...

    def scores(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], prepared: Any
    ) -> tuple[dict[str, Tensor], Walk | None]:
        """Importance of every channel by channel group, float64 on the CPU, for a loss of the logits.

        Also what candidates on the same images can start from, where that gives the same bits.
        """
        ...

    def candidates(
        self, current: Subnetwork, candidates: Sequence[Candidate], check: Callable[[], None] = lambda: None
    ) -> Callable[[Tensor, Walk | None], list[Tensor]]:
        """Prepare candidates; the result maps images, and what `scores` left, to the logits of each, in their order.

        It calls `check` before each candidate, which raises to stop there.
        """
        ...


class NaiveNetworks:
    """Every network as a masked network from the images on: the reference that the fast ones are tested against."""

    def __init__(self, graph: ChannelGraph, norm_mode: NormMode = "batch") -> None:
        self.masked = MaskedNetwork(graph)
        self.norm_mode: NormMode = norm_mode

    def forward(self, images: Tensor, subnetwork: Subnetwork) -> Tensor:
        """Logits of a sub-network."""
        logits: Tensor = self.masked.forward(images, subnetwork, norm_mode=self.norm_mode)
        return logits

    def prepare(self, subnetwork: Subnetwork) -> Subnetwork:
        """Nothing is prepared."""
        return subnetwork

    def scores(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], prepared: Subnetwork
    ) -> tuple[dict[str, Tensor], None]:
        """Importance of every channel; nothing is left for candidates."""
        return self.masked.scores(images, loss, prepared, norm_mode=self.norm_mode), None

    def candidates(
        self, current: Subnetwork, candidates: Sequence[Candidate], check: Callable[[], None] = lambda: None
    ) -> Callable[[Tensor, Walk | None], list[Tensor]]:
        """Run each candidate by itself."""

        def run(images: Tensor, walk: Walk | None) -> list[Tensor]:
            logits = []
            for candidate in candidates:
                check()
                logits.append(self.forward(images, candidate.subnetwork))
            return logits

        return run


class FastNetworks:
    """Candidates branch off one walk through the current network, on kept channels only.

    Args:
        graph: analysed network.
        slice_below: share of kept channels from which down a channel group is sliced; with 0 the results are those of
            `NaiveNetworks` bit for bit.
        norm_mode: how batch norms are computed.
        arithmetic: numbers that they compute in; anything but the exact ones is an approximation.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        slice_below: float = SLICE_BELOW,
        norm_mode: NormMode = "batch",
        arithmetic: Arithmetic = EXACT,
    ) -> None:
        self.masked = MaskedNetwork(graph)
        self.norm_mode: NormMode = norm_mode
        self._sliced = SlicedNetwork(graph, slice_below, arithmetic)
        self._preparation = self._sliced.preparation
        self._first_batch = FirstBatch(self._sliced, self.masked, norm_mode)

    def forward(self, images: Tensor, subnetwork: Subnetwork) -> Tensor:
        """Logits of a sub-network."""
        return _single(self._sliced.forward(images, self._preparation.whole(subnetwork), norm_mode=self.norm_mode))

    def prepare(self, subnetwork: Subnetwork) -> Any:
        """Kernels and masks of a sub-network."""
        return self._preparation.whole(subnetwork)

    def scores(
        self, images: Tensor, loss: Callable[[Tensor], Tensor], prepared: Any
    ) -> tuple[dict[str, Tensor], Walk | None]:
        """Importance of every channel; compiled steps may round otherwise without gradients, and leave nothing.

        Raises:
            NetworkError: at the first call, the scores are not those of the masked network.
        """
        self._first_batch.check_scores(images, prepared.subnetwork)
        _, found, walk = self._sliced.scores(
            images, lambda logits: loss(_single(logits)), prepared, norm_mode=self.norm_mode
        )
        return found, None if self._sliced.arithmetic.compile else walk

    def candidates(
        self, current: Subnetwork, candidates: Sequence[Candidate], check: Callable[[], None] = lambda: None
    ) -> Callable[[Tensor, Walk | None], list[Tensor]]:
        """Prepare the current network and what each candidate changes.

        Raises:
            NetworkError: when the result is first called, the logits are not those of the masked network.
        """
        standing = self._preparation.whole(current)
        branches = [
            (candidate.group, self._preparation.narrowed(standing, candidate.subnetwork, candidate.group))
            for candidate in candidates
        ]

        def run(images: Tensor, walk: Walk | None) -> list[Tensor]:
            self._first_batch.check_candidates(images, current, candidates)
            outputs = self._sliced.branches(
                images, standing, branches, norm_mode=self.norm_mode, walk=walk, check=check
            )
            return [_single(logits) for logits in outputs]

        return run


def _single(logits: Tensor) -> Tensor:
    """Logits in at least 32 bits, for losses and sums."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
