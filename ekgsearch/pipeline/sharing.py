"""Results of phases between runs: copied where a phase store has them, else computed and stored."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ekgsearch.errors import StorageError
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.lines import content
from ekgsearch.pipeline.phase import Phase, differences
from ekgsearch.pipeline.phase_record import PhaseRecord, StoredPhase
from ekgsearch.pipeline.phase_store import PhaseStore
from ekgsearch.storage.files import file_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Obtained:
    """A phase whose files are in the run directory.

    Attributes:
        fields: of its line in the journal, the checksums of its files among them.
        producer: the run that computed it.
    """

    fields: Mapping[str, Any]
    producer: str


def obtain(context: RunContext, phase: Phase, begun: Mapping[str, Any]) -> Obtained:
    """Copy a phase from the phase store, or compute it and store it; of several runs at once, one computes.

    The first result that is stored wins: a run that has computed another one meanwhile takes the stored one over.

    Args:
        context: the run.
        phase: the phase.
        begun: its line of the journal, with its key and inputs.

    Raises:
        StorageError: the store is damaged, or `RunContext.verifies` and the result is another one this time.
    """
    store, key = context.store, str(begun["key"])
    if store is None or not phase.is_shared(context) or phase.identity(context).key != key:
        return _computed(context, phase)[0]
    with store.claimed(
        key,
        title=phase.name,
        producer=context.setup.job.run_name,
        check=context.check,
        on_wait=context.teams.release,
    ) as stored:
        if stored is not None and not context.verifies and phase.is_there(context):
            return _copied(context, phase, store, stored)
        mine, extras = _computed(context, phase)
        if stored is not None:
            _compare(stored, mine)
            return _copied(context, phase, store, stored)
        record = PhaseRecord(
            producer=mine.producer,
            fields={"lines": _lines_since_begin(context, phase), "commit": mine.fields},
            inputs=begun["inputs"],
        )
        stored = store.keep(key, record, [*mine.fields["files"], *extras], context.folder)
    return mine if stored.fields == record.fields else _copied(context, phase, store, stored)


def _computed(context: RunContext, phase: Phase) -> tuple[Obtained, Sequence[str]]:
    """Compute a phase; what was obtained, and the names of its further files."""
    result = phase.run(context)
    files = {name: file_sha256(context.folder / name) for name in result.files}
    return Obtained(fields={"files": files, **result.fields}, producer=context.setup.job.run_name), result.extras


def _copied(context: RunContext, phase: Phase, store: PhaseStore, stored: StoredPhase) -> Obtained:
    """Take over files and journal lines of a stored phase.

    Raises:
        StorageError: this run has made decisions of its own before, which are others.
    """
    present, lines = _lines_since_begin(context, phase), stored.fields["lines"]
    if present != lines[: len(present)]:
        raise StorageError(
            f"{context.folder}: its phase {phase.name} has made other decisions than the one in {store.uri}, computed "
            f"by {stored.producer!r}: this run had begun before it shared phases; leave phases.uri out to go on with "
            "its own, or start another run (--set output=...)"
        )
    store.fetch(stored, context.folder)
    for kind, fields in lines[len(present) :]:
        context.journal.append(kind, **fields)
    if stored.producer != context.setup.job.run_name:
        context.ledger.shared(phase.kind, phase.name, stored.producer)
    log.info("%s: taken over from %s, which computed it", phase.name, stored.producer)
    return Obtained(fields=stored.fields["commit"], producer=stored.producer)


def _lines_since_begin(context: RunContext, phase: Phase) -> list[Any]:
    """Kind and fields of every line that a phase has written since it began."""
    place = next(index for index, line in enumerate(context.made) if line == context.begun(phase.name))
    return [[line["kind"], content(line)] for line in context.made[place + 1 :] if line["kind"] in phase.lines]


def _compare(stored: StoredPhase, mine: Obtained) -> None:
    """Compare a phase that was computed again with what is stored.

    Raises:
        StorageError: they differ.
    """
    found = differences(stored.fields["commit"], mine.fields)
    if found:
        raise StorageError(
            f"phase {stored.key[:16]}... in the store, computed by {stored.producer!r}, is another one when it is "
            f"computed again here: {'; '.join(found)}. Look for another kind of processor or other versions in the "
            "provenance.json of both runs; remove its result.json from the store to compute it for all"
        )
    log.info("%s: computed again, equal to what %s has stored", stored.key[:16], stored.producer)
