"""The prospect of a sweep, told before it starts: trials, the phases that they share, the most that they can cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ekgsearch.experiment import Job
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.records import content_hash
from ekgsearch.sections.tune import Budget
from ekgsearch.sweep.job import SweepJob, Trial, described
from ekgsearch.sweep.resources import cores_of_trial

MOST_LISTED = 40
"""Trials that are listed one by one."""


def shared_phases(jobs: Sequence[Job]) -> dict[str, int]:
    """How many times each kind of phase is computed at most, told from the fields of the jobs alone.

    The files that the jobs name count as equal where their places are; decisions of searches that differ in their
    budget alone count as one search, which goes to the smallest network.

    Args:
        jobs: the trials.

    Returns:
        Number of computations by kind of phase, in the order of a run; kinds that no job has are left out.
    """
    found: dict[str, set[str]] = {}
    for job in jobs:
        for phase, fields in _needs(job).items():
            found.setdefault(phase, set()).add(content_hash(fields))
    return {phase: len(keys) for phase, keys in found.items()}


def prospect_text(sweep: SweepJob, trials: Sequence[Trial] | None) -> str:
    """The prospect of a sweep, in lines.

    Args:
        sweep: the sweep.
        trials: its trials, where they are known.
    """
    return "\n".join(_lines(sweep, trials))


def _lines(sweep: SweepJob, trials: Sequence[Trial] | None) -> Iterator[str]:
    section = sweep.section
    number = len(trials) if trials is not None else section.budget.trials
    assert number is not None
    job = sweep.any_trial().job
    cores = cores_of_trial(sweep)
    held = f"{cores:g} core{'s' * (cores != 1)}" + (f" and {section.gpus:g} GPU" if section.gpus else "")
    yield f"{number} trials ({section.algorithm}), each on {held}, into {sweep.folder}"
    if trials is not None and len(trials) <= MOST_LISTED:
        yield from (f"  {trial.name}  {described(trial.values)}" for trial in trials)
    if trials is not None:
        for phase, count in shared_phases([trial.job for trial in trials]).items():
            users = sum(phase in _needs(trial.job) for trial in trials)
            once = "for each trial" if count == users else f"{count} for {users} trials"
            yield f"  {phase:<9} {once}"
    epochs = [trial.job.finetune.epochs for trial in trials] if trials is not None else [job.finetune.epochs] * number
    if section.scheduler == "asha":
        halts = [section.grace_epochs * section.factor**power for power in range(20)]
        reached = [str(halt) for halt in halts if halt < max(epochs)]
        yield f"asha compares trials after {', '.join(reached) or 'no'} epochs"
    images = job.data.train_images or (job.data.known.train if job.data.known else None)
    over = f" over {images:,} images" if images else ""
    yield f"at most {sum(epochs):,} epochs of fine-tuning{over}; {_limit(section.budget)}"


def _limit(budget: Budget) -> str:
    limits = []
    if budget.device_hours is not None:
        limits.append(f"{budget.device_hours:g} device-hours")
    if budget.wall_minutes is not None:
        limits.append(f"{budget.wall_minutes:g} minutes a call")
    if limits:
        return f"ended after {' or '.join(limits)}"
    return "no limit of time or cost: tune.budget.device_hours and tune.budget.wall_minutes set one"


def _needs(job: Job) -> dict[str, Mapping[str, Any]]:
    """Fields that the result of each kind of phase depends on, those of the phases before it among them."""
    fields = job.identity()
    start = {name: fields[name] for name in ("seed", "net", "data")}
    start["weights"] = {"weights": job.net.weights, "root": job.data.root}
    found: dict[str, Mapping[str, Any]] = {}
    if job.net.trains_first:
        start = found["pretrain"] = {**start, "pretrain": fields["pretrain"]}
    if job.warmup.epochs:
        start = found["warmup"] = {**start, "warmup": fields["warmup"]}
    common = {**start, "search": job.search.deciding(), "betas": job.bank.betas}
    found["search"] = common
    start = {**common, "search": fields["search"]}
    if needs_of(job.finetune.objective).bank:
        start = found["bank"] = {**start, "bank": fields["bank"]}
    found["finetune"] = {**start, "finetune": fields["finetune"]}
    return found
