"""Sections of a job that say how a method searches: what all of them have."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ekgsearch.fields import Cost, Positive, Section, Share, Text
from ekgsearch.methods.rules import Rules
from ekgsearch.records import Counter, NormMode, Precision

if TYPE_CHECKING:
    from ekgsearch.methods.base import Materials, Search

LEAST_REDUCTION = 1e-6
"""Share of the cost that any first cut exceeds: fewer operations than a single channel has."""

UNKNOWN_REDUCTION = 0.3
"""In place of a budget in a smoke run: a number of operations means nothing at another size of the images."""


class SearchSection(Section, ABC):
    """What every method has; a method is a subclass and one entry of the union in `experiment`.

    Attributes:
        needs_workers: whether its search looks at the search subset, with workers that evaluate networks.
        leaves_teachers: whether it leaves interim sub-networks, which can become teachers.
        takes_betas: whether it makes teachers on request, one for each value of `bank.betas`.
        can_be_audited: whether any decision can be made once more by another evaluator (`methods.base.Repeats`).
    """

    needs_workers: ClassVar[bool] = False
    leaves_teachers: ClassVar[bool] = False
    takes_betas: ClassVar[bool] = False
    can_be_audited: ClassVar[bool] = False

    method: str = Field(description="who decides which channels go")
    reduction: Share | None = Field(None, description="tau, share of the cost to remove, 0..1; this or `budget`")
    budget: Cost | None = Field(None, description="largest cost allowed, an absolute number; this or `reduction`")
    unit: Literal["macs", "params"] = Field("macs", description="what `reduction` and `budget` limit")
    counter: Counter = Field("macs", description="how operations and parameters are counted")
    groups: Literal["all", "private"] = Field(
        "all", description="which channel groups may be cut; private: those with one producer, all: residual ones too"
    )
    skip: tuple[Text, ...] = Field(
        (), description="names of channel groups that are left alone; * stands for any characters"
    )
    images_per_class: Positive = Field(
        32, description="images of the search subset per class; those of the warm-up subset come after them"
    )

    @abstractmethod
    def open(self, materials: "Materials") -> "Search":
        """The search of this method; only here its code is loaded."""

    def deciding(self) -> dict[str, Any]:
        """Fields that decide which channels go, as JSON, without those that say how many."""
        idle = ("reduction", "budget") if self.needs_workers else ("reduction", "budget", "images_per_class")
        return {name: value for name, value in self.identity().items() if name not in idle}

    @property
    def draws_at_random(self) -> bool:
        """Whether a decision depends on the seed of the job."""
        return False

    @property
    def padding(self) -> Literal["torch", "tf_same"]:
        """Padding of a network where neither the job nor the sidecar of its weights says one."""
        return "torch"

    @property
    def warmup_factor(self) -> int:
        """What the gradient of the warm-up's loss is multiplied by."""
        return 1

    @property
    def least_width(self) -> int:
        """Channels that a channel group which is cut keeps at least, if it has as many."""
        return 1

    def first_width(self, size: int, uses: int) -> Fraction:
        """Width of a channel group after its first cut, as a share; 1 where the method has no steps.

        Args:
            size: channels of the channel group.
            uses: its producer convolutions.
        """
        return Fraction(1)

    def contradictions(self) -> Iterator[str]:
        """Fields that do not go together, one line each."""
        if (self.reduction is None) == (self.budget is None):
            yield "search: give exactly one of search.reduction (a share) and search.budget (a cost)"

    @property
    def own_beta(self) -> float | None:
        """The beta of the network that stays, where the method has one and the job names it."""
        return None

    def in_small(self) -> dict[str, Any]:
        """Fields of the smoke form that differ: as few decisions as the method makes."""
        return {"reduction": self.reduction or UNKNOWN_REDUCTION, "budget": None}


class EvaluatingSection(SearchSection):
    """What every method has that evaluates networks on the search subset."""

    needs_workers: ClassVar[bool] = True

    batch_size: Positive = Field(256, description="images of one indivisible batch (batch statistics)")
    evaluation: Literal["fast", "naive"] = Field(
        "fast", description="fast: candidates share what they have in common; naive: each by itself, the reference"
    )
    slice_below: float = Field(
        0.9,
        ge=0,
        le=1,
        description="channel groups that keep at most this share are computed on kept channels; 0: none",
    )
    precision: Precision = Field(
        "fp32", description="fp32: exact; tf32 (GPU) and bf16 are faster and approximate: see `run --audit`"
    )
    channels_last: bool = Field(False, description="channels of a pixel together in memory; other rounding")
    compile: bool = Field(False, description="compile norms with what follows them (torch.compile); other rounding")

    @abstractmethod
    def rules(self, seed: int) -> Rules:
        """How networks and channels are measured on the search subset."""

    @property
    def nominal_batch(self) -> int | None:
        """What every batch counts as; None for the true number of its images."""
        return None

    @property
    def norm_mode(self) -> NormMode:
        """How batch norms are computed."""
        return "batch"

    @model_validator(mode="after")
    def _has_one_arithmetic(self) -> "EvaluatingSection":
        if self.evaluation == "naive" and self.slice_below not in (0, type(self).model_fields["slice_below"].default):
            raise ValueError(
                f"search.evaluation naive slices nothing: search.slice_below = {self.slice_below} would do nothing; "
                "leave one of them out"
            )
        faster = self.faster()
        if self.evaluation == "naive" and faster:
            raise ValueError(
                f"search.evaluation naive is the plain network in 32-bit floats, so search.{faster[0]} does nothing; "
                "leave one of them out"
            )
        return self

    def faster(self) -> list[str]:
        """Fields that choose another arithmetic than the exact one, with their values."""
        found = [name for name in ("channels_last", "compile") if getattr(self, name)]
        return found + ([f"precision {self.precision}"] if self.precision != "fp32" else [])
