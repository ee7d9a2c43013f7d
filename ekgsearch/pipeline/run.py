"""The phases of a run in order: every finished one is a line of the journal, and is not done again."""

import json
import logging
from pathlib import Path
from typing import Any

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import fields_text, load_model
from ekgsearch.pipeline.adopt import adopt, find_search
from ekgsearch.pipeline.audit import audit
from ekgsearch.pipeline.backend import Backend
from ekgsearch.pipeline.finishing import evaluate_and_write_tables, finetune
from ekgsearch.pipeline.images import keep_index
from ekgsearch.pipeline.memory import state_memory
from ekgsearch.pipeline.preparing import pretrain, warm_up
from ekgsearch.pipeline.searching import check_bank_store, own_bank, search_and_fill_bank
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.state import RunState
from ekgsearch.records import canonical_json
from ekgsearch.runtime.environment import provenance
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.files import remove_partials, write_atomically
from ekgsearch.storage.journal import Journal

log = logging.getLogger(__name__)

ENVIRONMENT_FACTS = ("python", "cpu", "gpus")
ELSEWHERE = ("output", "search_run", "bank.uri", "bank.cache", "bank.resident", "study.condition")
THREADS = "cluster.threads_per_worker"


def run_job(job: Job, backend: Backend, *, continue_anyway: bool = False, num_audited: int = 0) -> None:
    """Run a job to its end, or continue it where it stopped.

    Args:
        job: what to do; its run directory exists.
        backend: where the heavy phases run.
        continue_anyway: continue a run directory of another job, machine or version.
        num_audited: iterations of the search that are decided again by the exact tier at the end.

    Raises:
        EkgError: bad input, a resumed run that differs, lost workers, a full disk, numbers that are not finite. What
            is in the journal is kept, and the same command continues.
    """
    run_dir = job.run_dir
    if num_audited and job.search.method != "ekg":
        raise JobError(
            f"search.method = {job.search.method} makes no decisions that --audit could repeat; leave it out"
        )
    setup = set_up(job, backend.cluster_has_gpus, in_run=True)
    with Journal.open(run_dir / "journal.jsonl") as journal:
        remove_partials(run_dir, shared=own_bank(run_dir))
        is_searched = any(line["kind"] == "search" for line in journal.lines)
        adopted = find_search(setup) if job.search_run is not None and not is_searched else None
        start_or_check(setup, journal, continue_anyway)
        if adopted is not None:
            adopt(adopted, job, journal)
        ledger = Ledger(run_dir / "ledger", job.run_name)
        state = RunState(setup, journal, ledger, backend)
        if state.line("done"):
            log.info("%s has finished before; its tables are written again", run_dir)
        check_bank_store(state)
        if job.search.method == "ekg" and not state.line("search"):
            state_memory(setup)
        pretrain(state)
        warm_up(state)
        search_and_fill_bank(state)
        finetune(state)
        evaluate_and_write_tables(state)
        if not state.line("done"):
            journal.append("done")
        if num_audited:
            audit(state, num_audited)


def start_or_check(setup: Setup, journal: Journal, continue_anyway: bool) -> None:
    """Write the first line of the journal, or compare it with this run; keep the index of the pictures.

    Raises:
        ResumeError: the run directory belongs to another job, network, input normalisation, other images, another kind
            of device, machine or version.
    """
    run_dir = setup.job.run_dir
    facts = {"job": setup.job.sha256, **setup.facts, **setup.devices.facts}
    found = provenance()
    if not journal.lines:
        write_atomically(run_dir / "job.yaml", fields_text(setup.job).encode())
        write_atomically(run_dir / "provenance.json", json.dumps(found, indent=2, sort_keys=True).encode())
        keep_index(setup.images)
        journal.append("run", **facts)
        return
    recorded = {name: journal.lines[0].get(name, "not recorded") for name in facts}
    differences = [
        f"{name} was {recorded[name]}, is {value}"
        for name, value in facts.items()
        if recorded[name] != value and name != "job"
    ]
    if recorded["job"] != facts["job"]:
        differences += _job_differences(run_dir / "job.yaml", setup.job)
    differences += _environment_differences(run_dir / "provenance.json", found)
    if differences and not continue_anyway:
        raise ResumeError(
            f"{run_dir} belongs to another run: {'; '.join(differences)}. Choose another output (--set output=...), "
            "delete the folder to start again, or continue all the same with --resume"
        )
    for difference in differences:
        log.warning("continuing although %s", difference)
    keep_index(setup.images)


def _job_differences(path: Path, job: Job) -> list[str]:
    """Fields in which a job differs from the one that the run directory was started with."""
    before, now = (_flat(item.model_dump(mode="json")) for item in (load_model(path, type(job)), job))
    return [
        f"{name} was {canonical_json(before[name])}, is {canonical_json(now[name])}"
        for name in now
        if before[name] != now[name] and name not in ELSEWHERE and (name == THREADS or not name.startswith("cluster."))
    ]


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


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
