"""Section of a job: the search."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from ekgsearch.fields import Cost, Positive, Section, Share
from ekgsearch.methods.criteria import Criterion, SearchTeacher
from ekgsearch.methods.ekg.reference import Quirk
from ekgsearch.records import Counter, Precision

OF_CANDIDATES = (
    "criterion",
    "search_teacher",
    "evaluation",
    "slice_below",
    "precision",
    "channels_last",
    "compile",
    "racing",
    "max_candidates",
)
"""Fields that decide which channels are scored how, and how candidates are evaluated."""


class SearchSection(Section):
    """The search for channels to remove."""

    method: Literal["ekg", "uniform"] = Field(
        "ekg", description="ekg: ensemble knowledge guided search; uniform: the same share of every channel group"
    )
    reduction: Share | None = Field(None, description="tau, share of the cost to remove, 0..1; this or `budget`")
    budget: Cost | None = Field(None, description="largest cost allowed, an absolute number; this or `reduction`")
    unit: Literal["macs", "params"] = Field("macs", description="what `reduction` and `budget` limit")
    counter: Counter = Field("macs", description="how operations and parameters are counted")
    step: Share = Field(0.2, description="r, share of a private channel group removed by one iteration")
    trim: float = Field(0.2, ge=0, lt=0.5, description="share of the channel groups trimmed before Otsu's threshold")
    images_per_class: Positive = Field(32, description="images of the search subset per class")
    batch_size: Positive = Field(256, description="images of one indivisible batch (batch statistics)")
    criterion: Criterion = Field("taylor_reward", description="what makes a channel important; EKG: taylor_reward")
    search_teacher: SearchTeacher = Field("ensemble", description="whose predictions the score compares with")
    quirks: tuple[Quirk, ...] = Field(
        (), description="what is done as in the program published with the paper (README, Decisions); `reference`: all"
    )
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
    racing: Share | None = Field(
        None,
        description="drop candidates that cannot win any more before they have seen all batches; the probability with "
        "which one decision may lose the best candidate, e.g. 0.05. null: every candidate sees all images (exact)",
    )
    max_candidates: Positive | None = Field(
        None,
        description="evaluate at most so many candidates of an iteration, those of the shortlist whose channels to "
        "remove have the lowest summed scores; null: the whole shortlist, as EKG does",
    )

    @property
    def evaluates_candidates(self) -> bool:
        """Whether the method decides step by step, with workers that evaluate candidates; teachers are left over."""
        return self.method == "ekg"

    @property
    def draws_at_random(self) -> bool:
        """Whether a decision depends on the seed of the job."""
        return self.criterion == "random"

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those of some fields that are not as by default, with the name of the section."""
        fields = type(self).model_fields
        return [f"search.{name}" for name in names if getattr(self, name) != fields[name].default]

    @model_validator(mode="after")
    def _evaluates_candidates(self) -> "SearchSection":
        if self.method == "uniform" and (idle := self.changed(OF_CANDIDATES)):
            raise ValueError(
                f"search.method uniform evaluates no candidates: {', '.join(idle)} would do nothing; leave it out"
            )
        if self.evaluation == "naive" and self.slice_below and self.changed(["slice_below"]):
            raise ValueError(
                f"search.evaluation naive slices nothing: search.slice_below = {self.slice_below} would do nothing; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _has_one_arithmetic(self) -> "SearchSection":
        faster = [name for name in ("channels_last", "compile") if getattr(self, name)]
        faster += [f"precision {self.precision}"] if self.precision != "fp32" else []
        if self.evaluation == "naive" and faster:
            raise ValueError(
                f"search.evaluation naive is the plain network in 32-bit floats, so search.{faster[0]} does nothing; "
                "leave one of them out"
            )
        if "sequential_statistics" in self.quirks and faster:
            raise ValueError(
                f"search.{faster[0]} rounds otherwise than the quirk sequential_statistics, which is there to round as "
                "the published program does; leave one of them out"
            )
        return self
