"""Sections of a job: the baselines that a method is compared with."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ekgsearch.fields import Share
from ekgsearch.methods.rules import Rules
from ekgsearch.methods.section import EvaluatingSection, SearchSection

if TYPE_CHECKING:
    from ekgsearch.methods.base import Materials
    from ekgsearch.methods.one_shot import OneShot

SCORED_EVERY = 0.025
"""Default share of the full cost that goes before channels are scored again."""


Groups = Literal["all", "private"]
Ranking = Literal["global", "per_layer"]
Stages = Annotated[int, Field(ge=3, le=1000)]
Drop = Annotated[float, Field(gt=0, le=100)]


class OneShotSection(SearchSection):
    """What every method has that cuts at once, or in stages with a training after each."""

    stages: Stages | None = Field(
        None,
        description="cut in so many stages, each of the same share of the cost, and train after each of them; the "
        "epochs of the section finetune are those of all stages together. null: cut at once",
    )
    stop_below: Drop | None = Field(
        None,
        description="end with the last stage whose accuracy on the test set, after its training, is no more than so "
        "many points below that of the unpruned network, and train that network for the epochs that are left",
    )

    @abstractmethod
    def open(self, materials: "Materials") -> "OneShot":
        """The search of this method; only here its code is loaded."""

    def contradictions(self) -> Iterator[str]:
        """Fields that do not go together, one line each."""
        yield from super().contradictions()
        if self.stop_below is not None and self.stages is None:
            yield f"search.stop_below = {self.stop_below:g} ends a cut in stages; give search.stages, too"

    def in_small(self) -> dict[str, Any]:
        """A smoke run has one epoch, so it cuts at once."""
        return super().in_small() | {"stages": None, "stop_below": None}


class UniformSection(OneShotSection):
    """The same share of every channel group."""

    method: Literal["uniform"] = Field(
        "uniform", description="who decides which channels go; uniform: the same share of every channel group"
    )

    def open(self, materials: "Materials") -> "OneShot":
        """The uniform cut."""
        from ekgsearch.methods.baselines.uniform import Uniform

        return Uniform(materials)


class RankingSection(OneShotSection):
    """What every method has that scores channels once and removes those that rank last."""

    ranking: Ranking = Field(
        "global",
        description="global: the channels of all channel groups in one ranking; per_layer: the same share of each "
        "channel group, its lowest scores first",
    )

    def open(self, materials: "Materials") -> "OneShot":
        """The cut by the criterion that the method is named after."""
        from ekgsearch.methods.baselines.by_criterion import ByCriterion

        return ByCriterion(self, materials)


class RescoringSection(RankingSection):
    """What every method has whose scores change with the channels that are gone."""

    score_every: Share = Field(
        SCORED_EVERY,
        description="share of the full cost that is removed before the channels that are left are scored again, 0..1; "
        "ranking per_layer scores once",
    )

    def contradictions(self) -> Iterator[str]:
        """Fields that do not go together, one line each."""
        yield from super().contradictions()
        if self.ranking == "per_layer" and self.score_every != SCORED_EVERY:
            yield (
                f"search.score_every = {self.score_every:g}: search.ranking per_layer scores once, so this does "
                "nothing; leave one of them out"
            )


class L1Section(RescoringSection):
    """The filters with the smallest L1 norm (arXiv 1608.08710)."""

    method: Literal["l1"] = Field(
        "l1", description="who decides which channels go; l1: the smallest sums of absolute weights of the filters"
    )


class L2Section(RescoringSection):
    """The filters with the smallest L2 norm."""

    method: Literal["l2"] = Field(
        "l2", description="who decides which channels go; l2: the smallest Euclidean norms of the filters"
    )


class FpgmSection(RescoringSection):
    """The filters nearest to all others (arXiv 1811.00250)."""

    method: Literal["fpgm"] = Field(
        "fpgm",
        description="who decides which channels go; fpgm: the smallest distances to all filters of the layer",
    )


class BnScaleSection(RankingSection):
    """The channels with the smallest scale of their batch norm (arXiv 1708.06519)."""

    method: Literal["bn_scale"] = Field(
        "bn_scale", description="who decides which channels go; bn_scale: the smallest scales of the batch norms"
    )


class RandomSection(RankingSection):
    """Channels drawn at random."""

    method: Literal["random"] = Field(
        "random", description="who decides which channels go; random: a draw, by the seed of the job"
    )

    @property
    def draws_at_random(self) -> bool:
        """The result depends on the seed of the job."""
        return True


class TaylorSection(RescoringSection, EvaluatingSection):
    """The channels whose loss changes the loss least, to first order (arXiv 1906.10771)."""

    method: Literal["taylor"] = Field(
        "taylor",
        description="who decides which channels go; taylor: the smallest first-order changes of the cross-entropy on "
        "the search subset",
    )

    def rules(self, seed: int) -> Rules:
        """The cross-entropy to the labels alone is differentiated."""
        return Rules(criterion="taylor_loss", search_teacher="none", seed=seed)


CriterionSection = L1Section | L2Section | FpgmSection | TaylorSection | BnScaleSection | RandomSection
"""Methods that remove the channels that rank last by a criterion."""

BaselineName = Literal["uniform", "l1", "l2", "fpgm", "taylor", "bn_scale", "random"]

BASELINES: dict[BaselineName, type[OneShotSection]] = {
    "uniform": UniformSection,
    "l1": L1Section,
    "l2": L2Section,
    "fpgm": FpgmSection,
    "taylor": TaylorSection,
    "bn_scale": BnScaleSection,
    "random": RandomSection,
}
"""The methods that serve as baselines of others."""
