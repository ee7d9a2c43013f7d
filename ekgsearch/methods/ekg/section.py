"""Section of a job: the search guided by ensemble knowledge."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ekgsearch.fields import Positive, Share
from ekgsearch.methods.ekg.quirks import Quirk, default_padding, nominal_batch, norm_mode, warmup_factor
from ekgsearch.methods.ekg.steps import coarse_step
from ekgsearch.methods.rules import Criterion, Rules, SearchTeacher
from ekgsearch.methods.section import LEAST_REDUCTION, EvaluatingSection
from ekgsearch.records import NormMode

if TYPE_CHECKING:
    from ekgsearch.methods.base import Materials
    from ekgsearch.methods.ekg.method import Ekg

Compete = Literal["score", "score_per_cost"]
"""score: the lowest score wins, as in EKG. score_per_cost: the lowest rise of the score per share of the cost saved."""

Shortlist = Literal["otsu", "all"]
"""otsu: channel groups whose next cut has a summed score up to the trimmed Otsu threshold, as in EKG. all: all."""

MOST_IN_SMALL = 3
"""Candidates of an iteration in a smoke run."""

OF_CANDIDATES = (
    "criterion",
    "search_teacher",
    "evaluation",
    "slice_below",
    "precision",
    "channels_last",
    "compile",
    "shortlist",
    "compete",
    "racing",
    "max_candidates",
)
"""Fields that decide which channels are scored how, and how candidates are evaluated."""

PRESETS: Mapping[Any, Mapping[str, Any]] = {
    "private_l2": {"groups": "private", "criterion": "l2", "shortlist": "all"},
}
"""Values that a preset gives to fields that a job leaves out."""


class EkgSection(EvaluatingSection):
    """The ensemble knowledge guided search for channels to remove (arXiv 2203.02651)."""

    leaves_teachers: ClassVar[bool] = True
    can_be_audited: ClassVar[bool] = True

    method: Literal["ekg"] = Field(
        "ekg", description="who decides which channels go; ekg: ensemble knowledge guided search"
    )
    step: Share = Field(0.2, description="r, share of a private channel group removed by one iteration")
    preset: Literal["published", "private_l2"] = Field(
        "published",
        description="values of the fields that are left out; published: those of EKG; private_l2: groups private, "
        "criterion l2, shortlist all, which at 45 % of the MACs removed kept more accuracy than EKG before any "
        "fine-tuning, and than the baselines in the mean of three search subsets; not after it (results/README.md)",
    )
    shortlist: Shortlist = Field(
        "otsu",
        description="which channel groups have their next cut evaluated; otsu: those whose channels to remove have a "
        "summed score at or below the trimmed Otsu threshold, as in EKG; all: every one",
    )
    trim: float = Field(0.2, ge=0, lt=0.5, description="share of the channel groups trimmed before Otsu's threshold")
    criterion: Criterion = Field(
        "taylor_reward",
        description="what EKG scores channels with before it evaluates candidates, EKG: taylor_reward; who decides "
        "which channels go is `search.method`",
    )
    search_teacher: SearchTeacher = Field("ensemble", description="whose predictions the score compares with")
    quirks: tuple[Quirk, ...] = Field(
        (), description="what is done as in the program published with the paper (results/README.md); `reference`: all"
    )
    width_multiple: Positive = Field(
        1,
        description="a cut leaves a multiple of so many channels, which some devices compute faster, e.g. 8; of a "
        "channel group with fewer it takes none",
    )
    compete: Compete = Field(
        "score",
        description="which of the evaluated candidates wins; score: that of the lowest score, as in EKG; "
        "score_per_cost: that of the lowest rise of the score per share of the unpruned cost that it saves",
    )
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

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**PRESETS.get(values.get("preset"), {}), **values}

    def open(self, materials: "Materials") -> "Ekg":
        """The search of EKG."""
        from ekgsearch.methods.ekg.method import Ekg

        return Ekg(self, materials)

    @property
    def draws_at_random(self) -> bool:
        """Whether a decision depends on the seed of the job."""
        return self.criterion == "random"

    @property
    def padding(self) -> Literal["torch", "tf_same"]:
        """With all quirks, that of the published program."""
        return default_padding(self.quirks)

    @property
    def warmup_factor(self) -> int:
        """What the gradient of the warm-up's loss is multiplied by."""
        return warmup_factor(self.quirks)

    @property
    def nominal_batch(self) -> int | None:
        """What every batch counts as; None for the true number of its images."""
        return nominal_batch(self.quirks, self.batch_size)

    @property
    def norm_mode(self) -> NormMode:
        """How batch norms are computed."""
        return norm_mode(self.quirks)

    def rules(self, seed: int) -> Rules:
        """How networks and channels are measured on the search subset."""
        return Rules(criterion=self.criterion, search_teacher=self.search_teacher, seed=seed)

    @property
    def least_width(self) -> int:
        """Channels that a channel group which is cut keeps at least, if it has as many."""
        return self.width_multiple

    def first_width(self, size: int, uses: int) -> Fraction:
        """Width of a channel group after its first cut, as a share."""
        return 1 - coarse_step(size, uses, self.step)

    def in_small(self) -> dict[str, Any]:
        """One iteration of at most three candidates."""
        most = min(self.max_candidates or MOST_IN_SMALL, MOST_IN_SMALL)
        return {"reduction": LEAST_REDUCTION, "budget": None, "max_candidates": most}

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those of some fields that are not as by default, with the name of the section."""
        fields = type(self).model_fields
        return [f"search.{name}" for name in names if getattr(self, name) != fields[name].default]

    @model_validator(mode="after")
    def _has_one_rule(self) -> "EkgSection":
        if self.quirks and self.width_multiple > 1:
            raise ValueError(
                f"search.width_multiple = {self.width_multiple} and search.quirks: the published program knows no "
                "multiples; leave one of them out"
            )
        for name, published in (("compete", "score"), ("shortlist", "otsu")):
            if self.quirks and getattr(self, name) != published:
                raise ValueError(
                    f"search.{name} = {getattr(self, name)} and search.quirks: that of the published program is "
                    f"{published}; leave one of them out"
                )
        if self.racing is not None and self.compete != "score":
            raise ValueError(
                f"search.compete = {self.compete} and search.racing, which drops candidates by their scores alone; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _rounds_as_published(self) -> "EkgSection":
        if "sequential_statistics" in self.quirks and (faster := self.faster()):
            raise ValueError(
                f"search.{faster[0]} rounds otherwise than the quirk sequential_statistics, which is there to round as "
                "the published program does; leave one of them out"
            )
        return self
