"""The team of search workers, kept from one phase that needs it to the next."""

from contextlib import ExitStack

from ekgsearch.runtime.listener import Listener
from ekgsearch.workers.backend import Backend
from ekgsearch.workers.spec import SearchSpec
from ekgsearch.workers.team import Team
from ekgsearch.workers.workload import Workload


class Teams:
    """Opens a team where a phase needs one, and ends it where the next one does not."""

    def __init__(self, backend: Backend, listener: Listener) -> None:
        self._backend = backend
        self._listener = listener
        self._stack = ExitStack()
        self._open: tuple[Workload, Team] | None = None

    def get(self, workload: Workload, spec: SearchSpec) -> Team:
        """The team that is open, if it has this workload, else a new one.

        Args:
            workload: network with its weights, and images.
            spec: batches of the search subset; a team that searched serves the memory bank as well.
        """
        if self._open is None or self._open[0] != workload:
            self.release()
            self._open = (
                workload,
                self._stack.enter_context(self._backend.team(workload, spec, listener=self._listener)),
            )
        return self._open[1]

    def release(self) -> None:
        """End the team, if there is one."""
        self._open = None
        self._stack.close()
