"""The backend that runs search, memory bank and training on Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ekgsearch.orchestration.training import fit
from ekgsearch.orchestration.workers import RayCrew
from ekgsearch.pipeline.backend import InProcessBackend
from ekgsearch.pipeline.team import Team
from ekgsearch.pipeline.training import TrainingPlan
from ekgsearch.pipeline.worker import SearchPlan
from ekgsearch.pipeline.workload import Workload
from ekgsearch.runtime.ledger import Clock
from ekgsearch.sections import ClusterSection


class RayBackend:
    """Workers and training processes in one Ray session; what needs one process alone stays in this one."""

    def __init__(self, cluster: ClusterSection) -> None:
        self._cluster = cluster
        self._local = InProcessBackend()
        self._num_devices = 1

    @property
    def num_search_devices(self) -> int:
        """Devices (CPU: cores) that the workers of search and bank hold, while there is a team."""
        return self._num_devices

    @contextmanager
    def team(self, workload: Workload, plan: SearchPlan) -> Iterator[Team]:
        """Start the workers; they stop at the end of the context."""
        if self._cluster.search_workers == 0:
            with self._local.team(workload, plan) as team:
                self._num_devices = self._local.num_search_devices
                yield team
            return
        crew = RayCrew(workload, plan, self._cluster)
        self._num_devices = crew.num_devices
        try:
            yield Team(crew, plan)
        finally:
            crew.stop()

    def train(self, plan: TrainingPlan, *, folder: Path, workers: int, clock: Clock) -> None:
        """Train the networks of a plan; several processes, or a cluster that was named, go through Ray Train."""
        if workers == 1 and self._cluster.address is None:
            self._local.train(plan, folder=folder, workers=workers, clock=clock)
        else:
            fit(plan, folder=folder, workers=workers, cluster=self._cluster, clock=clock)
