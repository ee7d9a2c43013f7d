"""Placement of search workers: what one asks for, and what the cluster has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ekgsearch.runtime.listener import Listener, stop_where_asked
from ekgsearch.sections.cluster import ClusterSection

RESERVE_SECONDS = 0.5
"""Longest wait for places before the listener is asked whether to stop."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one search worker asks of a node."""

    cpus: float
    gpus: float

    @classmethod
    def of(cls, cluster: ClusterSection, device: str) -> "Request":
        """The request of a job on a device, "cpu" or "cuda"."""
        return cls(cluster.cores_per_worker, cluster.gpus_per_worker if device == "cuda" else 0)

    @property
    def devices(self) -> float:
        """GPUs, or cores where it asks for no GPU."""
        return self.gpus or self.cpus

    def room(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """Workers that nodes with these resources could hold."""
        return sum(
            int(min(node.get(name, 0) / amount for name, amount in self._amounts() if amount) + 1e-9) for node in nodes
        )

    def __str__(self) -> str:
        return " and ".join(f"{amount:g} {name}" for name, amount in self._amounts() if amount)

    def _amounts(self) -> tuple[tuple[str, float], ...]:
        return ("CPU", self.cpus), ("GPU", self.gpus)


def nodes_of_cluster() -> list[dict[str, float]]:
    """Resources of every living node of the session."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [dict(node["Resources"]) for node in nodes if node["Alive"]]


def no_room(request: Request, num_workers: int, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Say what was asked, what there is, and what to change; None where all workers have a place.

    Args:
        request: of one worker.
        num_workers: workers that the job asks for.
        nodes: resources of every living node.
    """
    room = request.room(nodes)
    if room >= num_workers:
        return None
    there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes) or "none"
    share = "gpus_per_worker" if request.gpus else "cpus_per_worker"
    return (
        f"cluster.search_workers = {num_workers} workers ask for {request} each, but the {len(nodes)} nodes of the "
        f"cluster hold {room} of them (nodes: {there}); add nodes, or set cluster.search_workers={max(room, 1)}, or a "
        f"smaller cluster.{share}"
    )


def reserve(request: Request, num_workers: int, placement: str, listener: Listener) -> PlacementGroup:
    """Wait until all workers have a place at once, and hold these places.

    Args:
        request: of one worker.
        num_workers: workers.
        placement: spread or pack, over nodes.
        listener: asked whether to stop while others hold the places.

    Raises:
        Stopped: the listener has asked for it; nothing is held then.
    """
    bundle = {name: amount for name, amount in (("CPU", request.cpus), ("GPU", request.gpus)) if amount}
    group: PlacementGroup = placement_group([bundle] * num_workers, strategy=placement.upper())
    try:
        while not group.wait(RESERVE_SECONDS):
            stop_where_asked(listener)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def spread(sizes: Sequence[int], num_workers: int) -> list[tuple[int, ...]]:
    """Give every batch to the worker with the fewest images so far; never more workers than batches.

    Args:
        sizes: images of each batch.
        num_workers: workers that are wanted, at least 1.

    Returns:
        For each worker the indices of its batches, ascending; it depends on the arguments alone.
    """
    parts: list[list[int]] = [[] for _ in range(min(num_workers, len(sizes)))]
    for batch in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        min(parts, key=lambda part: sum(sizes[index] for index in part)).append(batch)
    return [tuple(sorted(part)) for part in parts]
