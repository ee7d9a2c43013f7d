"""A run that adopts the search of another one: same network, images and rules, another fine-tuning."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.experiment import Job, expand_path
from ekgsearch.pipeline.changes import STATEMENTS, Fields, changed, newest_statement
from ekgsearch.pipeline.pretrain import save_initial
from ekgsearch.pipeline.setup import Setup
from ekgsearch.pipeline.statement import stated_fields
from ekgsearch.records import canonical_json
from ekgsearch.storage.files import file_sha256, make_folder, read_bytes, write_atomically
from ekgsearch.storage.journal import Journal, read_journal
from ekgsearch.storage.paths import inside

log = logging.getLogger(__name__)

ADOPTED_KINDS = ("pretrain", "warmup", "iteration", "search")
"""Lines of the journal that are taken over; what follows them is this run's own."""

_CHAIN = ("seq", "kind", "prev", "hash")


@dataclass(frozen=True)
class FoundSearch:
    """A finished search of another run that a job may adopt.

    Attributes:
        source: the run directory.
        lines: its journal up to the end of the search, the first line left out.
    """

    source: Path
    lines: tuple[dict[str, Any], ...]


def find_search(setup: Setup) -> FoundSearch:
    """Open the run that `search_run` names, and compare its search with the one that the job describes.

    Raises:
        JobError: the run has no finished search, or its search was another one.
        StorageError: its journal is damaged.
    """
    job = setup.job
    assert job.search_run is not None
    source = expand_path(job.search_run, "search_run").absolute()
    if source == job.run_dir:
        raise JobError(f"search_run = {job.search_run} is the run directory itself; leave it out or name another run")
    path = source / "journal.jsonl"
    if not path.is_file():
        raise JobError(f"search_run: expected the directory of a run with a finished search, found no {path}")
    lines = read_journal(path)
    stated = newest_statement(lines) or {}
    if not any(line["kind"] == "search" for line in lines):
        raise JobError(
            f"search_run: {source} has not finished its search; continue it: ekgsearch run {source}/job.yaml"
        )
    found = FoundSearch(source, tuple(line for line in lines if line["kind"] in ADOPTED_KINDS))
    differences = _differences(setup, found, stated)
    if differences:
        raise JobError(
            f"search_run: the search of {source} is not the one that this job describes: {'; '.join(differences)}. "
            "Make them equal, or leave search_run out to search anew"
        )
    return found


def adopt(found: FoundSearch, job: Job, journal: Journal) -> None:
    """Copy decisions and weights, as far as they are not here yet; the statements of the journal are this run's own.

    Raises:
        ResumeError: this run directory has decisions of its own, or those of another search.
        StorageError: a file of the other run is missing or altered, or its name leads out of the run directory.
    """
    present = [_content(line) for line in journal.lines if line["kind"] not in STATEMENTS]
    if present != [_content(line) for line in found.lines[: len(present)]]:
        raise ResumeError(
            f"{job.run_dir} has decisions that are not those of search_run = {job.search_run}; choose another output "
            "(--set output=...) or leave search_run out"
        )
    for line in found.lines[len(present) :]:
        if "file" in line:
            _copy(found.source, job.run_dir, str(line["file"]), str(line["sha256"]))
        if line["kind"] == "search":
            write_atomically(job.run_dir / "subnetwork.json", read_bytes(found.source / "subnetwork.json"))
        journal.append(line["kind"], **_content(line))
    log.info("adopted the search of %s: %d journal lines", found.source, len(found.lines))


def _differences(setup: Setup, found: FoundSearch, stated: Mapping[str, Any]) -> list[str]:
    """In what the search of another run differs from that of a job."""
    before = search_fields(stated_fields(stated, found.source))
    now = search_fields(setup.job.deciding_fields)
    differences = [
        f"{name} is {canonical_json(before.get(name))} there and {canonical_json(now.get(name))} here"
        for name in changed(before, now)
    ]
    differences += [
        f"{name} {'differs' if name in stated else 'is not recorded there'}"
        for name, value in setup.facts.items()
        if stated.get(name) != value
    ]
    if setup.job.net.weights is not None and not differences:
        with tempfile.TemporaryDirectory() as folder:
            given = file_sha256(save_initial(setup, Path(folder)))
        if found.lines[0].get("sha256") != given:
            differences.append(f"the weights in net.weights = {setup.job.net.weights} differ")
    return differences


def search_fields(fields: Fields) -> Fields:
    """Those of a job's deciding fields that the outcome of its search depends on, threads apart."""
    idle = {"data.loader", "data.root", "data.download", "data.test_images"}
    sections = {"seed", "net", "data", "pretrain", "warmup", "search"}
    if fields.get("net.weights") is not None:
        sections.remove("pretrain")
        idle |= {"net.weights", "data.train_images"}
    return {name: value for name, value in fields.items() if name.partition(".")[0] in sections and name not in idle}


def _content(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in _CHAIN}


def _copy(source: Path, run_dir: Path, name: str, sha256: str) -> None:
    path = inside(source, name)
    if not path.is_file() or file_sha256(path) != sha256:
        raise StorageError(
            f"{path}: the journal of that run names this file with SHA-256 {sha256[:12]}..., but it is missing or "
            "altered; restore it, or leave search_run out to search anew"
        )
    target = inside(run_dir, name)
    make_folder(target.parent)
    write_atomically(target, read_bytes(path))
