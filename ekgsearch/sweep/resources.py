"""Cores and GPUs that the trials of a sweep hold."""

from ekgsearch.sweep.job import SweepJob


def gpus_of_trial(sweep: SweepJob) -> float:
    """GPUs that a trial holds at most at a time, where the cluster has some."""
    job = sweep.any_trial().job
    if job.asks_for_workers:
        return max(job.cluster.search_workers * job.cluster.gpus_per_worker, job.finetune.workers)
    return sweep.section.gpus


def cores_of_trial(sweep: SweepJob) -> float:
    """Cores that a trial holds at most at a time."""
    job = sweep.any_trial().job
    if job.asks_for_workers:
        return max(job.cluster.search_workers, job.finetune.workers) * job.cluster.cores_per_worker
    return sweep.section.cpus or max(job.cluster.threads, job.cluster.threads_per_worker)
