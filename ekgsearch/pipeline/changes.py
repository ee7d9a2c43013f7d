"""Fields that may still change while a run is under way: those that no phase so far depends on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ekgsearch.finetune.config import EMBEDDING_OBJECTIVES
from ekgsearch.records import Phase

Fields = Mapping[str, Any]
"""Fields of a job that can change a result, by dotted name; see `Job.deciding_fields`."""

STATEMENTS = ("run", "job")
"""Kinds of the journal lines that say what a run is: the first line, and one for each change that was accepted."""

FIRST_PHASE: Mapping[str, Phase | None] = {
    "data.root": None,
    "data.download": None,
    "data.max_bad_images": None,
    "data.max_damaged": None,
    "search.quirks": Phase.PRETRAIN,
    "cluster.threads": Phase.PRETRAIN,
    "seed": Phase.PRETRAIN,
    "net": Phase.PRETRAIN,
    "data": Phase.PRETRAIN,
    "pretrain": Phase.PRETRAIN,
    "warmup": Phase.WARMUP,
    "search": Phase.SEARCH,
    "study": Phase.SEARCH,
    "cluster.threads_per_worker": Phase.SEARCH,
    "bank": Phase.BANK,
    "finetune": Phase.FINETUNE,
}
"""First phase that depends on a field, or on a section where the field is not listed itself.

None: no result depends on it. Those fields say where the same images lie (their content is compared for itself), or
when a run gives up.
"""

_WITH_GIVEN_WEIGHTS: Mapping[str, Phase | None] = {
    "data.train_images": Phase.BANK,
    "data.test_images": Phase.FINETUNE,
    "data.loader": Phase.FINETUNE,
    "pretrain": None,
}
"""The same where the job gives trained weights, so that nothing is pre-trained."""

_FACTS: Mapping[str, Phase] = {
    **dict.fromkeys(("data", "net", "mean", "std"), Phase.PRETRAIN),
    **dict.fromkeys(("counter", "macs", "params", "groups"), Phase.SEARCH),
}
"""First phase that depends on a fact of `Setup.facts`."""


def newest_statement(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The journal line that says what a run is by now; None where it has not begun."""
    return next((line for line in reversed(lines) if line["kind"] in STATEMENTS), None)


def changed(before: Fields, now: Fields) -> list[str]:
    """Names of the fields that differ, in order of their names."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def phase_of_fact(name: str) -> Phase:
    """First phase that depends on a fact of `Setup.facts`."""
    return _FACTS[name]


def phase_of_field(name: str, before: Fields, now: Fields) -> Phase | None:
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
        phases["finetune.objective"] = Phase.BANK
    return phases[name] if name in phases else phases[name.partition(".")[0]]


def phases_begun(lines: Iterable[Mapping[str, Any]], attempted: Iterable[str]) -> set[Phase]:
    """Phases of which there is anything that a continued run would take up.

    Args:
        lines: the journal.
        attempted: phases with an attempt in the ledger.
    """
    kinds = {line["kind"] for line in lines} | set(attempted)
    begun = {phase for phase in Phase if phase.value in kinds}
    return begun | {Phase.SEARCH} if kinds & {"iteration", "study"} else begun


def to_do_again(first: Iterable[Phase | None], begun: Iterable[Phase]) -> list[Phase]:
    """Phases that have begun and depend on a change, in order.

    Args:
        first: first phase that depends on each of the changed fields.
        begun: phases that have begun.
    """
    order = list(Phase)
    places = [order.index(phase) for phase in first if phase is not None]
    return [phase for phase in order if places and phase in begun and order.index(phase) >= min(places)]


def _stores_embeddings(fields: Fields) -> bool:
    return bool(fields.get("bank.embeddings")) or fields.get("finetune.objective") in EMBEDDING_OBJECTIVES
