"""The phases of a run in order: every finished one is a line of the journal, and is not done again."""

import logging

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.pipeline.adopt import adopt, find_search
from ekgsearch.pipeline.audit import audit
from ekgsearch.pipeline.bank import check_bank_store, own_bank
from ekgsearch.pipeline.evaluate import evaluate_and_write_tables
from ekgsearch.pipeline.finetune import finetune
from ekgsearch.pipeline.memory import state_memory
from ekgsearch.pipeline.pretrain import pretrain
from ekgsearch.pipeline.search import search_and_fill_bank
from ekgsearch.pipeline.setup import set_up
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.pipeline.train import driver_threads
from ekgsearch.pipeline.warmup import warm_up
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.files import remove_partials
from ekgsearch.storage.journal import Journal
from ekgsearch.workers.backend import Backend

log = logging.getLogger(__name__)


def run_job(job: Job, backend: Backend, *, continue_anyway: bool = False, num_audited: int = 0) -> None:
    """Run a job to its end, or continue it where it stopped.

    Args:
        job: what to do; its run directory exists.
        backend: where the heavy phases run.
        continue_anyway: continue on another machine, with another version, or with changes of the job that no phase
            depends on which has begun; see `start_or_check`.
        num_audited: iterations of the search that are decided again by the exact tier at the end.

    Raises:
        EkgError: bad input, a resumed run that differs, lost workers, a full disk, numbers that are not finite. What
            is in the journal is kept, and the same command continues.
    """
    if num_audited and job.search.method != "ekg":
        raise JobError(
            f"search.method = {job.search.method} makes no decisions that --audit could repeat; leave it out"
        )
    with driver_threads(job):
        _run(job, backend, continue_anyway=continue_anyway, num_audited=num_audited)


def _run(job: Job, backend: Backend, *, continue_anyway: bool, num_audited: int) -> None:
    run_dir = job.run_dir
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
