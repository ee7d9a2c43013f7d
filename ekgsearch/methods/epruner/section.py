"""Section of a job: exemplar filters by affinity propagation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ekgsearch.fields import Count
from ekgsearch.methods.section import UNKNOWN_REDUCTION, SearchSection

if TYPE_CHECKING:
    from ekgsearch.methods.base import Materials
    from ekgsearch.methods.epruner.search import Epruner

Initialisation = Literal["exemplar", "random_projection", "l1", "random"]
"""What the slim network starts its fine-tuning from.

exemplar: the filters that stay, as they are. random_projection: the same filters, their inputs projected at random
instead of selected. l1: as many filters in each layer, those with the largest L1 norm. random: fresh weights.
"""

Norms = Literal["reset", "slice"]
"""Batch norms behind cut layers, their biases and the linear layers that they feed: as published reset, or sliced."""

Beta = Annotated[float, Field(gt=0, le=1)]


class EprunerSection(SearchSection):
    """Exemplar filters by affinity propagation (EPruner, arXiv 2101.07985): no data, one shot."""

    leaves_teachers: ClassVar[bool] = True
    takes_betas: ClassVar[bool] = True

    method: Literal["epruner"] = Field(
        "epruner", description="who decides which channels go; epruner: exemplar filters by affinity propagation"
    )
    groups: Literal["private"] = Field(
        "private", description="private: channel groups with one producer, whose filters are clustered"
    )
    beta: Beta | None = Field(
        None,
        description="beta, preference for exemplars as a share of the median similarity, 0..1; the smaller, the more "
        "filters stay. This, `reduction` or `budget`, which take the smallest beta that meets them",
    )
    late_beta: Beta | None = Field(None, description="beta of the last layers; null: that of the others")
    late_from: Count | None = Field(
        None, description="first layer, counted from 0 over the channel groups that are cut, that has `late_beta`"
    )
    late_first_conv: bool = Field(
        False, description="give `late_beta` to 1x1 convolutions as well, such as the first one of a bottleneck"
    )
    initialisation: Initialisation = Field(
        "exemplar",
        description="what fine-tuning starts from; exemplar: the filters that stay; random_projection: their inputs "
        "projected at random; l1: as many filters, those with the largest norm; random: fresh weights",
    )
    norms: Norms = Field(
        "reset",
        description="batch norms behind cut layers, biases of these, and linear layers that they feed; reset: start "
        "afresh, as published; slice: keep what belongs to the channels that stay",
    )

    def open(self, materials: "Materials") -> "Epruner":
        """The clustering of EPruner."""
        from ekgsearch.methods.epruner.search import Epruner

        return Epruner(self, materials)

    @property
    def own_beta(self) -> float | None:
        """The beta of the network that stays; None where a budget leads to it."""
        return self.beta

    @property
    def draws_at_random(self) -> bool:
        """Whether the result depends on the seed of the job."""
        return self.initialisation in ("random_projection", "random") or self.norms == "reset"

    def contradictions(self) -> Iterator[str]:
        """Fields that do not go together, one line each."""
        given = [name for name in ("beta", "reduction", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            yield (
                "search: give exactly one of search.beta (a preference), search.reduction (a share) and search.budget "
                f"(a cost), found {' and '.join(given) or 'none'}"
            )
        if (self.late_beta is None) != (self.late_from is None):
            yield "search: search.late_beta and search.late_from go together; give both, or none"
        if self.late_first_conv and self.late_beta is None:
            yield "search.late_first_conv = true: there is no search.late_beta; give it, or leave this out"

    def in_small(self) -> dict[str, Any]:
        """The same: clustering takes seconds."""
        return {"reduction": UNKNOWN_REDUCTION, "budget": None} if self.budget is not None else {}
