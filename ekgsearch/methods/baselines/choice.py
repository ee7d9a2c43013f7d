"""Section of a job: one of the baselines that a method is compared with, and how it cuts."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ekgsearch.fields import Section
from ekgsearch.methods.baselines.section import BASELINES, Drop, Groups, OneShotSection, Ranking, Stages
from ekgsearch.methods.section import SearchSection

_KINDS: Mapping[str, type[OneShotSection]] = {str(name): kind for name, kind in BASELINES.items()}

_LIKE_THE_SEARCH = ("reduction", "budget", "unit", "counter", "groups", "skip", "images_per_class")


class BaselineChoice(Section):
    """A baseline that a method is compared with, and how it cuts; its name alone stands for all defaults."""

    method: Literal["plain", "scratch", "uniform", "l1", "l2", "fpgm", "taylor", "bn_scale", "random"] = Field(
        description="plain: the same network; scratch: the same with fresh weights; else what cuts"
    )
    groups: Groups | None = Field(
        None,
        description="which channel groups it may cut; null: it cuts in both ways, and of the two networks the one "
        "with the lower loss on the search subset is trained",
    )
    ranking: Ranking | None = Field(None, description="see search.ranking; null: global")
    stages: Stages | None = Field(None, description="see search.stages")
    stop_below: Drop | None = Field(None, description="see search.stop_below")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @property
    def cuts(self) -> bool:
        """Whether it makes a network of its own."""
        return self.method in _KINDS

    @property
    def name(self) -> str:
        """What tables and files call it, such as `l1-private-4-stages`."""
        parts = [self.method, self.groups, self.ranking and self.ranking.replace("_", "-")]
        return "-".join([part for part in parts if part] + ([f"{self.stages}-stages"] if self.stages else []))

    def in_small(self) -> "BaselineChoice":
        """That of a smoke run, which has one epoch and so no stages."""
        return self.model_copy(update={"stages": None, "stop_below": None})

    def forms(self, search: SearchSection) -> tuple[OneShotSection, ...]:
        """Its cuts of what another method may cut, looking at the same images; one for each choice of channel groups.

        Args:
            search: the other method.
        """
        fields = {field: getattr(search, field) for field in _LIKE_THE_SEARCH} | {
            name: value for name, value in self if name != "method" and value is not None
        }
        kind = _KINDS[self.method]
        if self.groups is not None or search.groups == "private":
            return (kind(**fields),)
        return tuple(kind(**(fields | {"groups": groups})) for groups in ("all", "private"))

    def contradictions(self, place: str) -> Iterator[str]:
        """Fields that do not go together, one line each.

        Args:
            place: name of the field that it stands in.
        """
        if not self.cuts:
            if given := [name for name, value in self if name != "method" and value is not None]:
                yield f"{place}: {self.method} cuts nothing, so {given[0]} does nothing; leave it out"
            return
        if self.ranking is not None and "ranking" not in _KINDS[self.method].model_fields:
            yield f"{place}: {self.method} ranks nothing, so ranking = {self.ranking} does nothing; leave it out"
        if self.stop_below is not None and self.stages is None:
            yield f"{place}: stop_below = {self.stop_below:g} ends a cut in stages; give stages, too"
