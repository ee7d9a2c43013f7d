"""Searches that make one decision: all that goes, goes at once."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.slim import slim
from ekgsearch.methods.base import Decision, Materials
from ekgsearch.records import Subnetwork


class OneShot(ABC):
    """Decision 0 is the unpruned network, decision 1 what the method keeps; see `methods.base.Search`."""

    def __init__(self, materials: Materials) -> None:
        self.materials = materials

    @abstractmethod
    def cut(self, current: Subnetwork) -> tuple[Subnetwork, Mapping[str, Any]]:
        """The sub-network that stays of another one, and what else the method records."""

    def run(self, made: Sequence[Decision] = ()) -> Iterator[Decision]:
        """Yield the two decisions, or those that are not made yet.

        Raises:
            EkgError: the method cannot cut as asked, or the weights are unusable.
        """
        full = self.materials.graph.full()
        if not made:
            yield decided(self.materials, 0, full, full, {})
        if len(made) < 2:
            found, own = self.cut(full)
            yield decided(self.materials, 1, full, found, own)

    def is_over(self, made: Sequence[Decision]) -> bool:
        """Whether both are made."""
        return len(made) > 1

    def depends_on_budget(self, made: Sequence[Decision]) -> bool:
        """Both are stored with the budget: there is nothing to share but the unpruned network."""
        return True

    def slim(self, graph: ChannelGraph, subnetwork: Subnetwork) -> nn.Module:
        """The weights of the channels that stay."""
        return slim(graph, subnetwork)


def decided(
    materials: Materials, iteration: int, before: Subnetwork, subnetwork: Subnetwork, own: Mapping[str, Any]
) -> Decision:
    """A decision that changes many channel groups at once.

    Args:
        materials: of the search.
        iteration: its number.
        before: what stood before it; decisions are rebuilt from what each has changed.
        subnetwork: what stays.
        own: what else the method records.
    """
    stood = dict(before.kept)
    macs, params = materials.costs(subnetwork)
    return Decision(
        iteration=iteration,
        group="",
        changed=tuple(name for name, kept in subnetwork.kept if kept != stood[name]),
        subnetwork=subnetwork,
        macs=macs,
        params=params,
        own=own,
    )
