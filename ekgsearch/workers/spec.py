"""Jobs of a worker, and records of what it has done."""

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ekgsearch.channels.arithmetic import EXACT, Arithmetic
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.methods.evaluate import PREFIX_BYTES
from ekgsearch.methods.networks import SLICE_BELOW, TIE_TOLERANCE, Evaluation, FastNetworks, NaiveNetworks, Networks
from ekgsearch.methods.rules import PUBLISHED, Rules
from ekgsearch.methods.section import EvaluatingSection
from ekgsearch.records import NormMode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """An answer and the seconds of work it took."""

    value: T
    busy_seconds: float


@dataclass(frozen=True, slots=True)
class BuiltBlock:
    """A block of the memory bank that has been stored.

    Attributes:
        block: block index, from 0.
        images: images in it.
        replaced: how many of them stand in for a damaged one of their class.
    """

    block: int
    images: int
    replaced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """Batches of the search subset and how networks are evaluated on them.

    Attributes:
        run: name of the run, which every report carries.
        batches: pairs (batch index, image ids); a batch is never split.
        nominal_batch: count every batch as so many images (quirk `nominal_batch_means`); None for the true number.
        evaluation: "fast", or "naive" for the masked network from the images on.
        slice_below: share of kept channels from which down a channel group is computed on its kept channels only.
        rules: importance criterion and teacher of the score.
        norm_mode: how batch norms are computed.
        arithmetic: numbers that the fast evaluation computes in.
        prefix_bytes: memory of one worker for what scoring computed and candidates start from; it changes no result.
    """

    run: str
    batches: tuple[tuple[int, tuple[int, ...]], ...]
    nominal_batch: int | None
    evaluation: Evaluation = "fast"
    slice_below: float = SLICE_BELOW
    rules: Rules = PUBLISHED
    norm_mode: NormMode = "batch"
    arithmetic: Arithmetic = EXACT
    prefix_bytes: int = PREFIX_BYTES

    @classmethod
    def of(
        cls,
        section: EvaluatingSection,
        *,
        run: str,
        batches: tuple[tuple[int, tuple[int, ...]], ...],
        seed: int,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> "SearchSpec":
        """The spec that a section of a job describes, in its tier.

        Args:
            section: how the method evaluates.
            run: name of the run.
            batches: pairs (batch index, image ids).
            seed: of a random criterion.
            prefix_bytes: see the attribute.
        """
        return cls(
            run=run,
            batches=batches,
            nominal_batch=section.nominal_batch,
            evaluation=section.evaluation,
            slice_below=section.slice_below,
            rules=section.rules(seed),
            norm_mode=section.norm_mode,
            arithmetic=Arithmetic(section.precision, section.channels_last, section.compile),
            prefix_bytes=prefix_bytes,
        )

    @property
    def exact(self) -> "SearchSpec":
        """The same batches and rules, evaluated exactly."""
        return replace(self, evaluation="fast", slice_below=SLICE_BELOW, arithmetic=EXACT)

    @property
    def divisor(self) -> int:
        """What the summed score is divided by: the images of all batches, or the nominal batch size."""
        return self.nominal_batch or sum(len(ids) for _, ids in self.batches)

    @property
    def tie_tolerance(self) -> float:
        """Share of the lowest score within which rounding could decide; 0 where nothing is left out."""
        return 0.0 if self.evaluation == "naive" or self.slice_below == 0 else TIE_TOLERANCE

    def networks(self, graph: ChannelGraph) -> Networks:
        """What runs the sub-networks of a network under this spec."""
        if self.evaluation == "naive":
            return NaiveNetworks(graph, self.norm_mode)
        return FastNetworks(graph, self.slice_below, self.norm_mode, self.arithmetic)
