"""In what several runs differ, for the labels, colours and columns of their comparison."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ekgsearch.records import canonical_json
from ekgsearch.report.facts import fine_tuning
from ekgsearch.rows.run import SummaryRow
from ekgsearch.sweep.job import short_label

SEEDS = ("seed", "finetune.seed")

_IDLE = (*SEEDS, "output", "search_run", "phases.uri", "bank.uri", "net.weights", "data.root")
"""Fields by which runs of one kind may differ."""


def settings_of_run(s: SummaryRow) -> dict[str, Any]:
    """Fields of the job of a run that are told in a comparison, by dotted name; unlike the default, or often varied."""
    known = {
        "search.method": s.method,
        "search.step": s.search_step,
        "search.beta": s.search_beta,
        "search.reduction": s.search_reduction,
        "finetune.objective": s.objective if s.finetune_epochs else "no fine-tuning",
        "finetune.epochs": s.finetune_epochs if s.finetune_epochs > 0 else None,
        "finetune.learning_rate": s.finetune_learning_rate,
        "bank.teachers": s.bank_teachers,
        "net.name": s.architecture,
        "data.name": s.dataset,
    }
    changed = {name: json.loads(value) for name, value in s.settings.items() if name not in _IDLE}
    return {**changed, **{name: value for name, value in known.items() if value is not None}}


def varied_fields(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields in which some of the runs differ, in the order in which they come; not to have one is a difference."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    return [name for name in names if len({canonical_json(one.get(name)) for one in settings}) > 1]


def labels_of(summaries: Sequence[SummaryRow]) -> list[str]:
    """What tells each run from the others, seeds apart: runs with the same label differ in their seeds alone."""
    settings = [settings_of_run(s) for s in summaries]
    varied = varied_fields(settings)
    return [
        short_label(one, varied) or f"{s.method}, {fine_tuning(s)}" for one, s in zip(settings, summaries, strict=True)
    ]
