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
