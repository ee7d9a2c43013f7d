"""The statement of a run in its journal: written at its start, compared whenever it is continued."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import fields_text, load_model
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.images import keep_index
from ekgsearch.pipeline.lines import newest_statement
from ekgsearch.pipeline.phase import ARITHMETIC, differences
from ekgsearch.records import PhaseKind, canonical_json
from ekgsearch.runtime.environment import provenance
from ekgsearch.storage.files import write_atomically

log = logging.getLogger(__name__)

ENVIRONMENT_FACTS = ("python", "cpu", "gpus")

BY_VERSION = ("semantics", "torch", "device")
"""Inputs of a phase with which a run may be continued otherwise than it has begun, if that is asked for."""


def start_or_check(context: RunContext, continue_anyway: bool) -> None:
    """Write the first line of the journal, or compare it with this run; keep the index of the pictures.

    What the tables say of a run comes from its job, so a run directory holds one job. A field may change only as long
    as no phase that depends on it has begun; the change is then a line of the journal.

    Args:
        context: the run.
        continue_anyway: continue on another machine, with another version, or with such a change.

    Raises:
        ResumeError: the run directory belongs to another job, network, input normalisation, other images, another kind
            of device, machine or version; or a phase that has begun depends on what has changed, which is refused with
            `continue_anyway` too.
    """
    job, folder, journal = context.setup.job, context.folder, context.journal
    fields = job.identity()
    facts = {"data": context.setup.dataset.content_hash, **context.setup.devices.facts}
    found = provenance()
    stated = newest_statement(journal.lines)
    if stated is None:
        write_atomically(folder / "provenance.json", json.dumps(found, indent=2, sort_keys=True).encode())
        keep_index(context.setup.images)
        _write_job(job)
        journal.append("run", job=job.sha256, fields=fields, **facts)
        return
    changed = differences(stated["fields"], fields)
    others = [f"{name} was {stated[name]}, is {fact}" for name, fact in facts.items() if stated[name] != fact]
    again, reasons = to_do_again(context)
    reasons = list(dict.fromkeys([*changed, *others, *reasons, *_environment_differences(folder, found)]))
    if reasons and (again or not continue_anyway):
        raise ResumeError(f"{folder} belongs to another run: {'; '.join(reasons)}. {_way_out(folder, again)}")
    for reason in reasons:
        log.warning("continuing although %s", reason)
    if changed or stated["data"] != facts["data"]:
        journal.append("job", job=job.sha256, fields=fields, changes=changed, **facts)
    if _written_fields(folder, type(job)) != fields:  # a change, also one that was killed before this line
        _write_job(job)
    keep_index(context.setup.images)


def to_do_again(context: RunContext) -> tuple[list[str], list[str]]:
    """Compare the phases that have begun with what they would depend on now.

    Returns:
        Names of the phases that would have to be done again, in order: the first that differs, and those after it. In
        words, everything in which phases differ, by version alone as well.
    """
    begun = [phase for phase in context.phases if context.begun(phase.name)]
    adopted = {name for line in context.lines("adopted") for name in line["phases"]}
    again: list[str] = []
    reasons: list[str] = []
    for phase in begun:
        if again:
            again.append(phase.name)
            continue
        line, now = context.begun(phase.name), phase.identity(context).to_dict()
        assert line is not None
        reasons += differences(line["inputs"], now, ARITHMETIC if phase.name in adopted else ())
        if differences(line["inputs"], now, ARITHMETIC if phase.name in adopted else BY_VERSION):
            again.append(phase.name)
    return again, reasons


def _written_fields(run_dir: Path, model: type[Job]) -> Mapping[str, Any] | None:
    try:
        return load_model(run_dir / "job.yaml", model).identity()
    except JobError as error:
        log.warning("%s; it is written again", error)
        return None


def _write_job(job: Job) -> None:
    """Write the job to its run directory: relative paths are absolute there, but for that of the directory itself."""
    here = job.model_copy(update={"output": "."})
    write_atomically(job.run_dir / "job.yaml", fields_text(here).encode())


def _way_out(run_dir: Path, again: Sequence[str]) -> str:
    """What somebody can do who wants to continue a run with something else."""
    if not again:
        return (
            "Choose another output (--set output=...), delete the folder to start again, or continue all the same with "
            "--resume"
        )
    adopting = "" if PhaseKind.SEARCH in again else f" with the search of this one (--set search_run={run_dir})"
    return (
        f"These phases have begun and depend on it, so they would have to be done again: {', '.join(again)}. Put it "
        f"back as it was, start another run{adopting} (--set output=...), or delete the folder to start again"
    )


def _environment_differences(run_dir: Path, found: dict[str, Any]) -> Iterator[str]:
    path = run_dir / "provenance.json"
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: expected the provenance of this run, found {error}") from error
    before, now = ({**facts, "torch": facts.get("packages", {}).get("torch")} for facts in (recorded, found))
    for name in (*ENVIRONMENT_FACTS, "torch"):
        if before.get(name) != now.get(name):
            yield f"{name} was {canonical_json(before.get(name))}, is {canonical_json(now.get(name))}"
