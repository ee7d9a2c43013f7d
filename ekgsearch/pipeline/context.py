"""A run in progress: resolved once, passed down to every phase."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.errors import StorageError
from ekgsearch.pipeline.found import slim_file
from ekgsearch.pipeline.phase import Phase
from ekgsearch.pipeline.phase_store import PhaseStore
from ekgsearch.pipeline.setup import Setup
from ekgsearch.pipeline.teams import Teams
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.ledger import Clock, Ledger
from ekgsearch.runtime.listener import Listener, stop_where_asked
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.paths import inside
from ekgsearch.workers.backend import Backend
from ekgsearch.workers.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What the phases of a run share.

    Attributes:
        setup: the job, checked and opened; it knows the kinds of devices.
        phases: the phases of the run, in order.
        folder: the run directory, absolute.
        journal: the truth about the run; phases read it through the methods below.
        made: the lines that these methods read, those of the journal.
        ledger: where its device-hours go.
        backend: where heavy work runs.
        teams: the search workers, while phases need them.
        listener: told of everything that happens; may ask for a stop.
        store: where runs share phases; None where this one does not.
        verifies: whether phases of the store are computed again and compared.
    """

    setup: Setup
    phases: tuple[Phase, ...]
    folder: Path
    journal: Journal
    made: Sequence[dict[str, Any]]
    ledger: Ledger
    backend: Backend
    teams: Teams
    listener: Listener
    store: PhaseStore | None = None
    verifies: bool = False

    def check(self) -> None:
        """Stop where a listener asks for it.

        Raises:
            Stopped: one does.
        """
        stop_where_asked(self.listener)

    @property
    def training_folder(self) -> Path:
        """Where trainings keep checkpoints, weights and records."""
        return self.folder / "training"

    def reading(self, folder: Path, lines: Sequence[dict[str, Any]]) -> "RunContext":
        """The same run as if it had made these journal lines in another folder; to read, not to go on with."""
        return replace(self, folder=folder, made=lines)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """All journal lines of one kind, in order."""
        return [line for line in self.made if line["kind"] == kind]

    def begun(self, phase: str) -> dict[str, Any] | None:
        """The journal line with the key and the inputs of a phase that has begun; None where it has not."""
        return next((line for line in self.lines("begin") if line["phase"] == phase), None)

    def committed(self, phase: str) -> dict[str, Any] | None:
        """The journal line of a finished phase; None where it has not finished."""
        lines = (line for line in self.made if line.get("phase") == phase and line["kind"] != "begin")
        return next(lines, None)

    def commit(self, phase: Phase, fields: Mapping[str, Any]) -> None:
        """Write the journal line of a finished phase.

        Args:
            phase: the phase.
            fields: what the line says; `files` has the SHA-256 of its files, by name in the run directory.
        """
        self.journal.append(phase.kind.value, phase=phase.name, **fields)

    def file(self, phase: str, name: str) -> Path:
        """A file of a finished phase, verified.

        Raises:
            StorageError: the phase has not finished, or the file is gone or altered.
        """
        line = self.committed(phase)
        if line is None or name not in line["files"]:
            raise StorageError(f"{self.folder}: expected {name} of phase {phase} in the journal, found none")
        path, expected = inside(self.folder, name), line["files"][name]
        if not path.is_file() or file_sha256(path) != expected:
            raise StorageError(
                f"{path}: the journal names this file with SHA-256 {expected[:12]}..., but it is missing or altered; "
                "restore it, or delete the run directory to start again"
            )
        return path

    def weights(self, phase: str) -> Path:
        """The weights that a phase has committed, verified; see `file`."""
        line = self.committed(phase)
        return self.file(phase, "" if line is None else str(line["weights"]))

    def weights_sha256(self, phase: str) -> str:
        """SHA-256 of the weights that a phase has committed."""
        line = self.committed(phase)
        assert line is not None, f"phase {phase} comes before those that need its weights"
        return self.sha256_of(phase, line["weights"])

    def sha256_of(self, phase: str, name: str) -> str:
        """SHA-256 of a file that a phase has committed."""
        line = self.committed(phase)
        assert line is not None, f"phase {phase} comes before those that need its files"
        return str(line["files"][name])

    def slim_weights(self, search: str) -> Path:
        """The weights of the slim network that a search has committed, verified; see `file`."""
        return self.file(search, slim_file(search))

    @property
    def start_weights(self) -> Path:
        """Weights that the search starts from: those after the warm-up."""
        return self.weights("warmup")

    @property
    def workload(self) -> Workload:
        """The network with the weights that the search starts from."""
        return self.setup.workload(self.start_weights)

    def open_graph(self) -> ChannelGraph:
        """The channel groups of the network with the weights that the search starts from."""
        return analyse(self.workload.open_network(), self.setup.recipe.input_shape)

    def charged(self, kind: PhaseKind, phase: str, device: str, num_devices: int) -> AbstractContextManager[Clock]:
        """Charge a block of work to a phase.

        Args:
            kind: of the phase.
            phase: its instance.
            device: kind of device held, as the tables write it.
            num_devices: devices held (CPU: cores).
        """
        return self.ledger.attempt(kind, device, num_devices, instance=phase)
