"""Settings of a job as columns of its summary."""

from typing import Any

from ekgsearch.experiment import Job, changed_fields
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.records import canonical_json
from ekgsearch.version import __version__


def settings_of(job: Job) -> dict[str, Any]:
    """The columns of the summary that its job says; a setting that does not apply to it is None."""
    search = job.search
    return {
        "method": search.method,
        "dataset": job.data.title or job.data.name,
        "objective": job.finetune.objective,
        "seed": job.seed,
        "finetune_seed": job.finetune_seed,
        "finetune_epochs": job.finetune.epochs,
        "search_step": getattr(search, "step", None),
        "search_beta": search.own_beta,
        "search_reduction": search.reduction,
        "search_budget": search.budget,
        "search_unit": search.unit,
        "search_groups": search.groups,
        "search_precision": getattr(search, "precision", None),
        "bank_teachers": job.bank.teachers if needs_of(job.finetune.objective).bank else None,
        "finetune_learning_rate": job.finetune.learning_rate if job.finetune.epochs else None,
        "finetune_batch_size": job.finetune.batch_size if job.finetune.epochs else None,
        "finetune_precision": job.finetune.precision if job.finetune.epochs else None,
        "threads": job.cluster.threads,
        "threads_per_worker": job.cluster.threads_per_worker,
        "settings": {name: canonical_json(value) for name, value in changed_fields(job).items() if name != "output"},
        "version": __version__,
    }
