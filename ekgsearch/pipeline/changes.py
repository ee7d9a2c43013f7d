"""Fields that may still change while a run is under way: those that no phase so far depends on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ekgsearch.finetune.config import EMBEDDING_OBJECTIVES
from ekgsearch.records import PhaseKind

Fields = Mapping[str, Any]
"""Fields of a job that can change a result, by dotted name; see `Job.deciding_fields`."""

STATEMENTS = ("run", "job")
"""Kinds of the journal lines that say what a run is: the first line, and one for each change that was accepted."""

FIRST_PHASE: Mapping[str, PhaseKind | None] = {
    "data.root": None,
    "data.download": None,
    "data.max_bad_images": None,
    "data.max_damaged": None,
    "search.quirks": PhaseKind.PRETRAIN,
    "cluster.threads": PhaseKind.PRETRAIN,
    "seed": PhaseKind.PRETRAIN,
    "net": PhaseKind.PRETRAIN,
    "data": PhaseKind.PRETRAIN,
    "pretrain": PhaseKind.PRETRAIN,
    "warmup": PhaseKind.WARMUP,
    "search": PhaseKind.SEARCH,
    "study": PhaseKind.SEARCH,
    "cluster.threads_per_worker": PhaseKind.SEARCH,
    "bank": PhaseKind.BANK,
    "finetune": PhaseKind.FINETUNE,
}
"""First phase that depends on a field, or on a section where the field is not listed itself.

None: no result depends on it. Those fields say where the same images lie (their content is compared for itself), or
when a run gives up.
"""

_WITH_GIVEN_WEIGHTS: Mapping[str, PhaseKind | None] = {
    "data.train_images": PhaseKind.BANK,
    "data.test_images": PhaseKind.FINETUNE,
    "data.loader": PhaseKind.FINETUNE,
    "pretrain": None,
}
"""The same where the job gives trained weights, so that nothing is pre-trained."""

_FACTS: Mapping[str, PhaseKind] = {
    **dict.fromkeys(("data", "net", "mean", "std"), PhaseKind.PRETRAIN),
    **dict.fromkeys(("counter", "macs", "params", "groups"), PhaseKind.SEARCH),
}
"""First phase that depends on a fact of `Setup.facts`."""


def newest_statement(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The journal line that says what a run is by now; None where it has not begun."""
    return next((line for line in reversed(lines) if line["kind"] in STATEMENTS), None)


def changed(before: Fields, now: Fields) -> list[str]:
    """Names of the fields that differ, in order of their names."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def phase_of_fact(name: str) -> PhaseKind:
    """First phase that depends on a fact of `Setup.facts`."""
    return _FACTS[name]


def phase_of_field(name: str, before: Fields, now: Fields) -> PhaseKind | None:
    """First phase whose result a change of a field can change.

    Args:
        name: dotted name.
        before: all deciding fields before the change.
        now: the same after it.

    Returns:
        The phase; None where no result depends on the field.
    """
    phases = dict(FIRST_PHASE)
    if before.get("net.weights") is not None and now.get("net.weights") is not None:
        phases |= _WITH_GIVEN_WEIGHTS
    if _stores_embeddings(before) != _stores_embeddings(now):
        phases["finetune.objective"] = PhaseKind.BANK
    return phases[name] if name in phases else phases[name.partition(".")[0]]


def phases_begun(lines: Iterable[Mapping[str, Any]], attempted: Iterable[str]) -> set[PhaseKind]:
    """Phases of which there is anything that a continued run would take up.

    Args:
        lines: the journal.
        attempted: phases with an attempt in the ledger.
    """
    kinds = {line["kind"] for line in lines} | set(attempted)
    begun = {phase for phase in PhaseKind if phase.value in kinds}
    return begun | {PhaseKind.SEARCH} if kinds & {"iteration", "study"} else begun


def to_do_again(first: Iterable[PhaseKind | None], begun: Iterable[PhaseKind]) -> list[PhaseKind]:
    """Phases that have begun and depend on a change, in order.

    Args:
        first: first phase that depends on each of the changed fields.
        begun: phases that have begun.
    """
    order = list(PhaseKind)
    places = [order.index(phase) for phase in first if phase is not None]
    return [phase for phase in order if places and phase in begun and order.index(phase) >= min(places)]


def _stores_embeddings(fields: Fields) -> bool:
    return bool(fields.get("bank.embeddings")) or fields.get("finetune.objective") in EMBEDDING_OBJECTIVES
