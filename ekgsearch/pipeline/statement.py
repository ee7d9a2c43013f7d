"""The statement of a run in its journal: written at its start, compared whenever it is continued."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import fields_text, load_model
from ekgsearch.pipeline.changes import (
    Fields,
    changed,
    newest_statement,
    phase_of_fact,
    phase_of_field,
    phases_begun,
    to_do_again,
)
from ekgsearch.pipeline.images import keep_index
from ekgsearch.pipeline.setup import Setup
from ekgsearch.records import PhaseKind, canonical_json
from ekgsearch.runtime.environment import provenance
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.journal import Journal

log = logging.getLogger(__name__)

ENVIRONMENT_FACTS = ("python", "cpu", "gpus")


def start_or_check(setup: Setup, journal: Journal, continue_anyway: bool) -> None:
    """Write the first line of the journal, or compare it with this run; keep the index of the pictures.

    What the tables say of a run comes from its job, so a run directory holds one job. A field may change only as long
    as no phase that depends on it has begun (`changes.FIRST_PHASE`); the change is then a line of the journal.

    Args:
        setup: the opened job.
        journal: of its run directory.
        continue_anyway: continue on another machine, with another version, or with such a change.

    Raises:
        ResumeError: the run directory belongs to another job, network, input normalisation, other images, another kind
            of device, machine or version; or a phase that has begun depends on what has changed, which is refused with
            `continue_anyway` too.
    """
    run_dir = setup.job.run_dir
    fields = setup.job.deciding_fields
    facts = {**setup.facts, **setup.devices.facts}
    found = provenance()
    stated = newest_statement(journal.lines)
    if stated is None:
        write_atomically(run_dir / "provenance.json", json.dumps(found, indent=2, sort_keys=True).encode())
        keep_index(setup.images)
        _write_job(setup.job)
        journal.append("run", job=setup.job.sha256, fields=fields, **facts)
        return
    before = stated_fields(stated, run_dir, type(setup.job))
    names = changed(before, fields)
    missing = [name for name in facts if name not in stated]
    other = [name for name in facts if name in stated and stated[name] != facts[name]]
    differences = [
        *(f"{name} was not recorded, is {facts[name]}" for name in missing),
        *(f"{name} was {stated[name]}, is {facts[name]}" for name in other),
        *(f"{name} was {canonical_json(before.get(name))}, is {canonical_json(fields.get(name))}" for name in names),
        *_environment_differences(run_dir / "provenance.json", found),
    ]
    other = [name for name in other if name in setup.facts]
    first = [phase_of_fact(name) for name in other] + [phase_of_field(name, before, fields) for name in names]
    again = to_do_again(first, _begun(setup.job, journal))
    if differences and (again or not continue_anyway):
        raise ResumeError(f"{run_dir} belongs to another run: {'; '.join(differences)}. {_way_out(run_dir, again)}")
    for difference in differences:
        log.warning("continuing although %s", difference)
    if names or other:
        changes = {name: [before.get(name), fields.get(name)] for name in names}
        journal.append("job", job=setup.job.sha256, fields=fields, changes=changes, **facts)
    if _written_fields(run_dir, type(setup.job)) != fields:  # a change, also one that was killed before this line
        _write_job(setup.job)
    keep_index(setup.images)


def stated_fields(stated: Mapping[str, Any], run_dir: Path, model: type[Job] = Job) -> Fields:
    """Deciding fields of the job that a run was started or last continued with.

    The journal has them; a run that was started before it had is taken by its `job.yaml`.

    Raises:
        JobError: there is no such file, or it is damaged.
    """
    fields: Fields | None = stated.get("fields")
    return load_model(run_dir / "job.yaml", model).deciding_fields if fields is None else fields


def _written_fields(run_dir: Path, model: type[Job]) -> Fields | None:
    try:
        return load_model(run_dir / "job.yaml", model).deciding_fields
    except JobError as error:
        log.warning("%s; it is written again", error)
        return None


def _write_job(job: Job) -> None:
    write_atomically(job.run_dir / "job.yaml", fields_text(job).encode())


def _begun(job: Job, journal: Journal) -> set[PhaseKind]:
    folder = job.run_dir / "ledger"
    attempted = [row.phase for row in Ledger(folder, job.run_name).rows()] if folder.exists() else []
    return phases_begun(journal.lines, attempted)


def _way_out(run_dir: Path, again: list[PhaseKind]) -> str:
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


def _environment_differences(path: Path, found: dict[str, Any]) -> list[str]:
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: expected the provenance of this run, found {error}") from error
    before, now = ({**facts, "torch": facts.get("packages", {}).get("torch")} for facts in (recorded, found))
    return [
        f"{name} was {canonical_json(before.get(name))}, is {canonical_json(now.get(name))}"
        for name in (*ENVIRONMENT_FACTS, "torch")
        if before.get(name) != now.get(name)
    ]
