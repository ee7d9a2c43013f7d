"""Adoption of another run's search: same network, images and rules, another fine-tuning."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.fields import expand_path
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.found import SEARCH
from ekgsearch.pipeline.lines import content
from ekgsearch.pipeline.phase import ARITHMETIC, Phase, differences
from ekgsearch.records import PhaseKind
from ekgsearch.storage.files import file_sha256, make_folder, read_bytes, write_atomically
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.paths import inside

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A run whose search is adopted, as far as the phases of the adopting run read it.

    Attributes:
        folder: its run directory.
        lines: its journal.
    """

    folder: Path
    lines: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    def lines_of(self, phases: Sequence[Phase]) -> list[dict[str, Any]]:
        """The lines of some phases, in order."""
        names = {phase.name for phase in phases}
        return [line for line in self.lines if line.get("phase") in names or line["kind"] == "iteration"]


def adopt_where_asked(context: RunContext) -> None:
    """Take over decisions and weights of the run that `search_run` names, unless the search has finished here.

    The journal says so in a line of its own, and the ledger whom the search is charged to. Versions of this program and
    of torch, threads and kinds of device may differ; nothing else that the search depends on may.

    Raises:
        JobError: the other run has no finished search, or its search was another one.
        ResumeError: this run directory has decisions of its own, or those of another search.
        StorageError: the other journal is damaged, or a file is missing or altered or leads out of the run directory.
    """
    if context.setup.job.search_run is None or context.committed("search"):
        return
    names = [phase.name for phase in context.phases]
    phases = context.phases[: names.index(SEARCH) + 1]
    source = _open(context)
    found = _differences(context, source, phases)
    if found:
        raise JobError(
            f"search_run: the search of {source.folder} is not the one that this job describes: {'; '.join(found)}. "
            "Make them equal, or leave search_run out to search here"
        )
    _copy(context, source, phases)


def _open(context: RunContext) -> Source:
    """Open the run that `search_run` names."""
    job = context.setup.job
    assert job.search_run is not None
    folder = expand_path(job.search_run, "search_run").absolute()
    if folder == context.folder:
        raise JobError(f"search_run = {job.search_run} is the run directory itself; leave it out or name another run")
    path = folder / "journal.jsonl"
    if not path.is_file():
        raise JobError(f"search_run: expected the directory of a run with a finished search, found no {path}")
    source = Source(folder, tuple(read_journal(path)))
    if not any(line["kind"] == PhaseKind.SEARCH for line in source.lines):
        raise JobError(
            f"search_run: {folder} has not finished its search; continue it: ekgsearch run {folder}/job.yaml"
        )
    return source


def _differences(context: RunContext, source: Source, phases: Sequence[Phase]) -> list[str]:
    """In what the search of another run differs from that of a job; the first phase that differs tells."""
    there = context.reading(source.folder, source.lines)
    for phase in phases:
        begun = there.begun(phase.name)
        if begun is None or there.committed(phase.name) is None:
            return [f"it has no finished phase {phase.name}"]
        found = differences(begun["inputs"], phase.identity(there).to_dict(), ARITHMETIC)
        if found:
            return found
    return []


def _copy(context: RunContext, source: Source, phases: Sequence[Phase]) -> None:
    """Copy lines and files, as far as they are not here yet."""
    adopted = [("adopted", {"run": source.name, "phases": [phase.name for phase in phases]})]
    wanted = [*adopted, *((line["kind"], content(line)) for line in source.lines_of(phases))]
    present = [(line["kind"], content(line)) for line in context.journal.lines if line["kind"] not in ("run", "job")]
    if present != wanted[: len(present)]:
        raise ResumeError(
            f"{context.folder} has decisions that are not those of search_run = {context.setup.job.search_run}; choose "
            "another output (--set output=...) or leave search_run out"
        )
    for phase in phases:
        context.ledger.shared(phase.kind, phase.name, source.name)
    for kind, fields in wanted[len(present) :]:
        for name, sha256 in fields.get("files", {}).items():
            _copy_file(source.folder, context.folder, name, sha256)
        context.journal.append(kind, **fields)
    log.info("adopted the search of %s: %d journal lines", source.folder, len(wanted) - 1)


def _copy_file(source: Path, run_dir: Path, name: str, sha256: str) -> None:
    path = inside(source, name)
    if not path.is_file() or file_sha256(path) != sha256:
        raise StorageError(
            f"{path}: the journal of that run names this file with SHA-256 {sha256[:12]}..., but it is missing or "
            "altered; restore it, or leave search_run out to search here"
        )
    target = inside(run_dir, name)
    make_folder(target.parent)
    write_atomically(target, read_bytes(path))
