"""A run on paper: its phases are begun and committed, and their files are named, not made.

A file's checksum, a sub-network and the manifest of a bank follow from the key of their phase, as if equal keys gave
equal results and different keys different ones.
"""

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

from ekgsearch.methods.base import Decision, Evaluation
from ekgsearch.methods.ekg.search import own_record
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.found import slim_file, subnetwork_file
from ekgsearch.pipeline.phase import Phase
from ekgsearch.pipeline.phases import phases_of
from ekgsearch.pipeline.setup import Setup
from ekgsearch.pipeline.teams import Teams
from ekgsearch.records import PhaseKind, Subnetwork, content_hash
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.runtime.listener import Listeners
from ekgsearch.storage.journal import Journal
from ekgsearch.workers.backend import InProcessBackend


def paper_run(setup: Setup, folder: Path, journal: Journal) -> RunContext:
    """A run in a folder that exists."""
    backend = InProcessBackend()
    return RunContext(
        setup=setup,
        phases=phases_of(setup.job),
        folder=folder,
        journal=journal,
        made=journal.lines,
        ledger=Ledger(folder / "ledger", setup.job.run_name),
        backend=backend,
        teams=Teams(backend, Listeners()),
        listener=Listeners(),
    )


def begin(context: RunContext, phase: Phase) -> str:
    """Begin a phase; returns its key."""
    inputs = phase.identity(context)
    context.journal.append("begin", phase=phase.name, key=inputs.key, inputs=inputs.to_dict())
    return inputs.key


def commit(context: RunContext, phase: Phase) -> str:
    """Begin a phase, and commit what would follow from its key; returns the key."""
    key = begin(context, phase)
    fields: dict[str, Any] = {"weights": f"{phase.name}.safetensors"}
    match phase.kind:
        case PhaseKind.SEARCH:
            fields = {"subnetwork": _search(context, phase, key).sha256}
        case PhaseKind.BANK:
            fields = {"manifest": content_hash(["manifest", key]), "teachers": [0]}
        case PhaseKind.EVALUATE:
            fields = {"images": 1}
    written = slim_file(phase.name) if phase.kind is PhaseKind.SEARCH else fields.get("weights")
    files = {written: content_hash(["file", key])} if written else {}
    context.commit(phase, {"files": files, **fields})
    return key


def commit_until(context: RunContext, last: str) -> dict[str, str]:
    """Commit all phases up to one; returns their keys by name."""
    keys = {}
    for phase in context.phases:
        keys[phase.name] = commit(context, phase)
        if phase.name == last:
            return keys
    raise AssertionError(f"no phase {last}")


def _search(context: RunContext, phase: Phase, key: str) -> Subnetwork:
    """Journal three decisions, and leave a sub-network."""
    current = context.setup.graph.full()
    for iteration in range(3 if phase.lines else 0):
        group = context.setup.graph.groups[iteration]
        if iteration:
            current = current.replace(group.name, _some(group.size, f"{key}{iteration}"))
        changed = (group.name,) if iteration else ()
        evaluation = Evaluation(float(iteration), float(iteration), 1, 1)
        decision = Decision(
            iteration=iteration,
            group=group.name if iteration else "",
            changed=changed,
            subnetwork=current,
            macs=1,
            params=1,
            evaluation=evaluation,
            own=own_record(Fraction(1), None),
        )
        context.journal.append("iteration", **decision.to_record())
    last = context.setup.graph.groups[-1]
    current = current.replace(last.name, _some(last.size, key))
    (context.folder / subnetwork_file(phase.name)).write_text(json.dumps(current.to_dict()))
    return current


def _some(size: int, key: str) -> list[int]:
    return sorted(random.Random(key).sample(range(size), size // 2))
