"""Kinds of devices for the parts of a run: those of this process, or those of workers on a cluster."""

import logging
from dataclasses import dataclass

import torch

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.methods.section import EvaluatingSection
from ekgsearch.runtime.environment import device_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Devices:
    """Kinds of devices, "cpu" or "cuda".

    Attributes:
        here: of this process, which trains the unpruned network, warms it up and evaluates.
        search: of whoever searches and fills the memory bank.
        finetune: of whoever fine-tunes.
    """

    here: str
    search: str
    finetune: str

    @property
    def facts(self) -> dict[str, str]:
        """What a run that is continued must have again: kinds of devices round differently."""
        return {"device": self.here, "search_device": self.search, "finetune_device": self.finetune}

    def name(self, kind: str) -> str:
        """Name of one of these kinds as the tables write it; `cuda` for GPUs that only other machines have."""
        return device_name(torch.device(kind)) if kind == self.here else kind


def find_devices(job: Job, cluster_has_gpus: bool | None = None) -> Devices:
    """Say what `cluster.device` comes to: workers on a cluster that was named use its GPUs, whatever this machine has.

    Args:
        job: the job.
        cluster_has_gpus: whether a node of the cluster that was named has a GPU; None where nobody has asked it.

    Raises:
        JobError: the job asks for a device, or for a precision, that is not where the work is done.
    """
    cluster, address = job.cluster, job.cluster.session_address
    has_cuda = torch.cuda.is_available()
    if cluster.device == "cuda" and address is None and not has_cuda:
        raise JobError("cluster.device = cuda, but torch finds no CUDA device on this machine; use auto or cpu")
    if cluster.device == "cuda" and address is not None and cluster_has_gpus is False:
        raise JobError(
            f"cluster.device = cuda, but no node of the cluster at {address} has a GPU; add one (ray start --num-gpus "
            "says how many it has), or use auto or cpu"
        )
    here = "cuda" if has_cuda and cluster.device != "cpu" else "cpu"
    workers = here
    if address is not None and cluster.device != "auto":
        workers = cluster.device
    elif address is not None and cluster_has_gpus is not None:
        workers = "cuda" if cluster_has_gpus else "cpu"
    found = Devices(
        here=here,
        search=workers if cluster.search_workers else here,
        finetune=workers if job.finetune.workers > 1 or address is not None else here,
    )
    if isinstance(job.search, EvaluatingSection) and job.search.precision == "tf32" and found.search == "cpu":
        raise JobError("search.precision = tf32, but only GPUs multiply in TF32 and this run is on the CPU; use fp32")
    if workers == "cuda" and here == "cpu":
        _say_what_stays_here(job, found)
    return found


def _say_what_stays_here(job: Job, found: Devices) -> None:
    """Tell what a cluster with GPUs does not do for a driver without one.

    Raises:
        JobError: the job asks for cuda, but searches in this process.
    """
    if found.search == "cpu" and job.search.needs_workers:
        message = (
            "the cluster has GPUs, but cluster.search_workers = 0 searches in this process, and torch finds no CUDA "
            "device on this machine; set cluster.search_workers to the number of GPUs to search with"
        )
        if job.cluster.device == "cuda":
            raise JobError(f"cluster.device = cuda: {message}, or use auto or cpu")
        log.warning("%s", message)
    log.warning(
        "this machine has no GPU and the cluster has: search on %s, fine-tuning on %s, evaluation%s here on the cpu",
        found.search,
        found.finetune,
        "" if not job.net.trains_first and not job.warmup.epochs else " and training before the search",
    )
