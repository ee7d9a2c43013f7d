"""Recipe of a slim network: another network, and the channels that it keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from ekgsearch.artefact.recipe import InputShape, Making, Recipe, check_fields
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
from ekgsearch.errors import NetworkError
from ekgsearch.records import Subnetwork


@dataclass(frozen=True, slots=True)
class Slim(Recipe):
    """A network that is really smaller.

    Attributes:
        base: the network that was cut.
        subnetwork: the channels that each of its channel groups keeps.
    """

    kind: ClassVar[str] = "slim"
    base: Recipe
    subnetwork: Subnetwork

    @property
    def name(self) -> str:
        """Name of the network that was cut."""
        return self.base.name

    @property
    def input_shape(self) -> InputShape:
        """Shape of one image."""
        return self.base.input_shape

    def make(self, making: Making) -> nn.Module:
        """Build the network that was cut, and cut it; kernels are not scaled, since their weights are loaded later.

        Raises:
            NetworkError: the network cannot be built, or has not these channel groups.
        """
        graph = analyse(self.base.make(making), self.input_shape)
        graph.validate(self.subnetwork)
        return slim(graph, self.subnetwork, preserve_norm=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON, without the kind."""
        base = {"kind": self.base.kind, **self.base.to_dict()}
        return {"base": base, "subnetwork": self.subnetwork.to_dict()}

    def identity(self) -> dict[str, Any]:
        """The network that was cut, and the hash of what it keeps."""
        return {"kind": self.kind, "base": self.base.identity(), "subnetwork": self.subnetwork.sha256}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], read: Callable[[Any], Recipe]) -> Self:
        """Read the plain form.

        Raises:
            NetworkError: a field is missing, unknown or not of its kind.
        """
        fields = check_fields(cls.kind, values, {"base", "subnetwork"})
        kept = fields["subnetwork"]
        if not isinstance(kept, dict) or not all(_is_kept(channels) for channels in kept.values()):
            raise NetworkError(
                "recipe 'slim': expected 'subnetwork' with the kept channels of each channel group, ascending whole "
                f"numbers, found {str(kept)[:80]}"
            )
        return cls(read(fields["base"]), Subnetwork.of(kept))


def _is_kept(channels: object) -> bool:
    return isinstance(channels, list) and all(
        isinstance(channel, int) and not isinstance(channel, bool) and 0 <= channel < 2**31 for channel in channels
    )
