"""A run: its phases one after the other; a finished one is a line of the journal and is not done again."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import expand_path
from ekgsearch.pipeline.adopt import adopt_where_asked
from ekgsearch.pipeline.audit import audit
from ekgsearch.pipeline.bank import own_bank
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.measurements import measure_latencies
from ekgsearch.pipeline.phase import Phase
from ekgsearch.pipeline.phase_store import PhaseStore
from ekgsearch.pipeline.phases import phases_of
from ekgsearch.pipeline.setup import set_up
from ekgsearch.pipeline.sharing import obtain
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.pipeline.tables import write_tables
from ekgsearch.pipeline.teams import Teams
from ekgsearch.pipeline.train import driver_threads
from ekgsearch.records import content_hash
from ekgsearch.runtime.ledger import LEDGER, Ledger
from ekgsearch.runtime.listener import (
    SILENT,
    Listener,
    Listeners,
    PhaseBegun,
    PhaseCommitted,
)
from ekgsearch.runtime.progress_listener import LogListener, ProgressListener
from ekgsearch.runtime.torch_state import state_kept
from ekgsearch.storage.files import remove_partials
from ekgsearch.storage.journal import Journal
from ekgsearch.workers.backend import Backend

log = logging.getLogger(__name__)

_UNDER_WAY = threading.Lock()


def run_job(
    job: Job,
    backend: Backend,
    *,
    listener: Listener = SILENT,
    continue_anyway: bool = False,
    verify_phases: bool = False,
    num_audited: int = 0,
    with_latencies: bool = True,
) -> None:
    """Run a job to its end, or continue it where it stopped.

    Args:
        job: what to do; its run directory exists.
        backend: where the heavy phases run.
        listener: told of what happens; may ask for a clean stop.
        continue_anyway: continue on another machine, with another version, or with changes of the job that no phase
            depends on which has begun; see `start_or_check`.
        verify_phases: compute the phases that the phase store has again, and compare.
        num_audited: iterations of the search that are decided again by the exact tier at the end.
        with_latencies: whether latencies are measured at the end, which tells nothing where other runs are under way;
            a later call measures them.

    Raises:
        EkgError: bad input, a resumed run that differs, lost workers, a full disk, numbers that are not finite. What
            is in the journal is kept, and the same command continues.
        Stopped: the listener asked for it.
    """
    if num_audited and not job.search.can_be_audited:
        raise JobError(
            f"search.method = {job.search.method} makes no decisions that --audit could repeat; leave it out"
        )
    if verify_phases and job.phases.uri is None:
        raise JobError("--verify-phases: expected a phase store in phases.uri, found null; leave one of them out")
    with opened_run(
        job, backend, phases_of, listener=listener, continue_anyway=continue_anyway, verify_phases=verify_phases
    ) as context:
        run_phases(context, after_each=write_tables)
        if with_latencies:
            measure_latencies(context)
        write_tables(context)
        if not context.lines("done"):
            context.journal.append("done")
        if num_audited:
            audit(context, num_audited)


@contextmanager
def opened_run(
    job: Job,
    backend: Backend,
    phases: Callable[[Job], tuple[Phase, ...]],
    *,
    listener: Listener,
    continue_anyway: bool,
    verify_phases: bool = False,
) -> Iterator[RunContext]:
    """Open a run directory and check that it belongs to the job.

    Args:
        job: what to do; its run directory exists.
        backend: where the heavy phases run.
        phases: lists the phases of the job.
        listener: told of what happens.
        continue_anyway: see `run_job`.
        verify_phases: see `run_job`.

    Yields:
        The run; its journal is held for as long as the block lasts.
    """
    folder = job.run_dir
    with _alone(job), state_kept(), driver_threads(job):
        store = _store(job)
        listener = Listeners([ProgressListener(log), LogListener(log), listener])
        setup = set_up(job, backend.cluster_has_gpus, in_run=True)
        with Journal.open(folder / "journal.jsonl") as journal:
            remove_partials(folder, shared=own_bank(folder))
            context = RunContext(
                setup=setup,
                phases=phases(job),
                folder=folder,
                journal=journal,
                made=journal.lines,
                ledger=Ledger(folder / LEDGER, job.run_name),
                backend=backend,
                teams=Teams(backend, listener),
                listener=listener,
                store=store,
                verifies=verify_phases,
            )
            start_or_check(context, continue_anyway)
            adopt_where_asked(context)
            if context.lines("done"):
                log.info("%s has finished before; its tables are written again", folder)
            try:
                yield context
            finally:
                context.teams.release()


def _store(job: Job) -> PhaseStore | None:
    """Open the phase store of a job, if it names one."""
    uri = job.phases.uri
    if uri is None:
        return None
    owner = content_hash([socket.gethostname(), str(job.run_dir)])[:16]  # whose journal one driver holds
    return PhaseStore.open(uri if "://" in uri else str(expand_path(uri, "phases.uri").absolute()), owner=owner)


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Refuse a second run in this process: threads and back ends of torch are those of one of them."""
    if not _UNDER_WAY.acquire(blocking=False):
        raise JobError(
            f"output = {job.output}: another run is under way in this process, and how torch computes is set for the "
            "whole of a process; wait until it ends, or start this one in a process of its own"
        )
    try:
        yield
    finally:
        _UNDER_WAY.release()


def run_phases(context: RunContext, after_each: Callable[[RunContext], None]) -> None:
    """Do every phase that has not finished, in order.

    Args:
        context: the run.
        after_each: called when a phase has been done, such as to write the tables.
    """
    for phase in context.phases:
        phase.check(context)
    for phase in context.phases:
        context.check()
        if not phase.needs_workers:
            context.teams.release()
        if _finish(context, phase):
            after_each(context)


def _finish(context: RunContext, phase: Phase) -> bool:
    """Compute a phase and commit it, unless that is done and all that it left is there; whether there was work."""
    committed = context.committed(phase.name)
    if committed is not None:
        for name in committed["files"]:
            context.file(phase.name, name)
        if phase.is_there(context):
            return False
    begun = _begin(context, phase)
    if committed is not None:
        phase.run(context)  # what it left besides its files is made again
        return True
    obtained = obtain(context, phase, begun)
    context.commit(phase, obtained.fields)
    context.listener.hear(PhaseCommitted(phase=phase.name, key=begun["key"], producer=obtained.producer))
    return True


def _begin(context: RunContext, phase: Phase) -> Mapping[str, Any]:
    """Say in the journal, once, what the result of a phase depends on; returns the line."""
    line = context.begun(phase.name)
    if line is None:
        inputs = phase.identity(context)
        line = context.journal.append("begin", phase=phase.name, key=inputs.key, inputs=inputs.to_dict())
    context.listener.hear(PhaseBegun(phase=phase.name, key=line["key"]))
    return line
