"""A run in progress: its journal, its ledger, and where its files are."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.errors import StorageError
from ekgsearch.pipeline.setup import Setup
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal
from ekgsearch.workers.backend import Backend
from ekgsearch.workers.workload import Workload

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunState:
    """What the phases of a run share."""

    setup: Setup
    journal: Journal
    ledger: Ledger
    backend: Backend

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.setup.job.run_dir

    @property
    def training_folder(self) -> Path:
        """Where trainings keep checkpoints, weights and records."""
        return self.folder / "training"

    def line(self, kind: str) -> dict[str, Any] | None:
        """The journal line of a finished phase, or None."""
        return next((line for line in self.journal.lines if line["kind"] == kind), None)

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """All journal lines of one kind, in order."""
        return [line for line in self.journal.lines if line["kind"] == kind]

    def commit(self, kind: str, path: Path, **fields: Any) -> None:
        """Name a file that is complete on the disk, with its checksum, in the journal."""
        name = path.relative_to(self.folder).as_posix()
        self.journal.append(kind, file=name, sha256=file_sha256(path), **fields)

    def committed(self, kind: str) -> Path | None:
        """The file that the journal names for a finished phase, verified; None where the phase has not finished.

        Raises:
            StorageError: the file is gone or altered.
        """
        line = self.line(kind)
        if line is None:
            return None
        path = self.folder / str(line["file"])
        if not path.is_file() or file_sha256(path) != line["sha256"]:
            raise StorageError(
                f"{path}: the journal names this file with SHA-256 {line['sha256'][:12]}..., but it is missing or "
                "altered; restore it, or delete the run directory to start again"
            )
        return path

    @property
    def start_weights(self) -> Path:
        """Weights that the search starts from: those after the warm-up."""
        path = self.committed("warmup")
        assert path is not None, "the warm-up comes before whatever needs its weights"
        return path

    @property
    def workload(self) -> Workload:
        """The network with the weights that the search starts from."""
        return self.setup.workload(self.start_weights)

    def open_graph(self) -> ChannelGraph:
        """The channel groups of the network with the weights that the search starts from."""
        return analyse(self.workload.open_network(), self.setup.net.input_shape)
