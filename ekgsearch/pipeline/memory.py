"""Statement of a run about memory, before its search starts."""

import logging
import os
from pathlib import Path

import torch

from ekgsearch.channels.memory import SearchMemory, search_memory
from ekgsearch.pipeline.setup import Setup

log = logging.getLogger(__name__)

_GIGABYTE = 1e9


def state_memory(setup: Setup) -> None:
    """Log the most memory that one search worker will hold, and warn where this machine has less to give.

    The naive evaluation and the quirk `sequential_statistics`, which are there to compare with, hold more than the
    number that is said, and the log says so. What is free on the nodes of a cluster is not known here.

    Args:
        setup: the opened job.
    """
    cluster = setup.job.cluster
    num_workers = max(1, cluster.search_workers)
    memory = worker_memory(setup, num_workers)
    free = None if cluster.search_workers and cluster.session_address else _free_bytes(setup.devices.search)
    log.info(
        "a search worker holds %s %.2f GB of tensors: %.2f GB while a batch of %d images is scored, %.2f GB while "
        "candidates are evaluated, %.2f GB that these start from, %.2f GB of weights and images%s",
        "more than" if _holds_more(setup) else "at most",
        memory.peak / _GIGABYTE,
        memory.scores / _GIGABYTE,
        setup.evaluating.batch_size,
        memory.candidates / _GIGABYTE,
        memory.prefixes / _GIGABYTE,
        (memory.network + memory.subset) / _GIGABYTE,
        "" if free is None else f"; free here: {free / _GIGABYTE:.1f} GB",
    )
    if free is not None and memory.peak * num_workers > free:
        log.warning(
            "that is more than is free here for %d workers: take a machine or a device with more memory, or "
            "search.precision bf16; a smaller search.batch_size needs less, but changes the result, since batch norms "
            "use the statistics of a batch",
            num_workers,
        )


def _holds_more(setup: Setup) -> bool:
    """Whether the search is evaluated in a way that the account of its memory does not cover."""
    return setup.evaluating.evaluation == "naive" or setup.search_spec.norm_mode == "batch_sequential"


def worker_memory(setup: Setup, num_workers: int) -> SearchMemory:
    """Memory of one search worker under the job's spec."""
    section = setup.evaluating
    sizes = [len(ids) for _, ids in setup.search_spec.batches]
    batch = max(sizes)
    masked = frozenset(
        group.name
        for group in setup.graph.groups
        if float(section.first_width(group.size, group.uses)) > section.slice_below
    )
    return search_memory(
        setup.graph,
        images=min(sum(sizes), -(-sum(sizes) // num_workers) + batch),
        batch_size=batch,
        num_classes=setup.dataset.num_classes,
        number_bytes=2 if section.precision == "bf16" else 4,
        masked_groups=masked,
        prefix_bytes=setup.search_spec.prefix_bytes,
    )


def _free_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
