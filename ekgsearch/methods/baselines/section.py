"""Sections of a job: the baselines that a method is compared with."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ekgsearch.methods.section import SearchSection

if TYPE_CHECKING:
    from ekgsearch.methods.base import Materials, Search


class UniformSection(SearchSection):
    """The same share of every channel group."""

    method: Literal["uniform"] = Field(
        "uniform", description="who decides which channels go; uniform: the same share of every channel group"
    )

    def open(self, materials: "Materials") -> "Search":
        """The uniform cut."""
        from ekgsearch.methods.baselines.uniform import Uniform

        return Uniform(materials)


BaselineName = Literal["uniform"]

_BASELINES: dict[str, type[SearchSection]] = {"uniform": UniformSection}


def baseline_section(name: BaselineName, search: SearchSection) -> SearchSection:
    """The section of a baseline that may cut what another method may, and looks at the same images."""
    common = ("reduction", "budget", "unit", "counter", "groups", "skip", "images_per_class")
    return _BASELINES[name](**{field: getattr(search, field) for field in common})
