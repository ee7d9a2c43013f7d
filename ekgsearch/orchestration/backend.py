"""The backend that runs search, memory bank and training on Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ekgsearch.orchestration.placement import nodes_of_cluster
from ekgsearch.orchestration.training import fit
from ekgsearch.orchestration.workers import RayCrew
from ekgsearch.runtime.ledger import Clock
from ekgsearch.runtime.listener import SILENT, Listener
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.spec import SearchSpec
from ekgsearch.workers.team import Team
from ekgsearch.workers.training import TrainingSpec
from ekgsearch.workers.workload import Workload


class RayBackend:
    """Workers and training processes in one Ray session; what needs one process alone stays in this one."""

    def __init__(self, cluster: ClusterSection, *, shares_session: bool = False) -> None:
        """Use the session that there is.

        Args:
            cluster: what workers ask for.
            shares_session: whether other runs want workers of it as well, so that all of this one's start together.
        """
        self._cluster = cluster
        self._shares_session = shares_session
        self._local = InProcessBackend()
        self._crew: RayCrew | None = None

    @property
    def cluster_has_gpus(self) -> bool | None:
        """Whether a node of the cluster that was named has a GPU; None where no cluster was named."""
        if self._cluster.session_address is None:
            return None
        return any(node.get("GPU", 0) > 0 for node in nodes_of_cluster())

    @property
    def num_search_devices(self) -> int:
        """Devices (CPU: cores) that the workers of search and bank hold, while there is a team."""
        return self._local.num_search_devices if self._crew is None else self._crew.num_devices

    def enlist(self, num_blocks: int) -> None:
        """Let the workers that have had no batch of the search join the team for blocks of the memory bank."""
        if self._crew is not None:
            self._crew.enlist(num_blocks)

    @contextmanager
    def team(self, workload: Workload, spec: SearchSpec, *, listener: Listener = SILENT) -> Iterator[Team]:
        """Start the workers; they stop at the end of the context."""
        if self._cluster.search_workers == 0:
            with self._local.team(workload, spec, listener=listener) as team:
                yield team
            return
        self._crew = crew = RayCrew(workload, spec, self._cluster, listener, together=self._shares_session)
        try:
            yield Team(crew, spec)
        finally:
            self._crew = None
            crew.stop()

    def train(
        self, spec: TrainingSpec, *, folder: Path, workers: int, clock: Clock, listener: Listener = SILENT
    ) -> None:
        """Train the networks of a spec; several processes, or a cluster that was named, go through Ray Train."""
        if workers == 1 and self._cluster.session_address is None:
            self._local.train(spec, folder=folder, workers=workers, clock=clock, listener=listener)
        else:
            fit(spec, folder=folder, workers=workers, cluster=self._cluster, clock=clock, listener=listener)
