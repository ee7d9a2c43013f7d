"""State of a process that a run changes and puts back: random generators, threads, back ends of torch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_SWITCHES: tuple[tuple[Any, str], ...] = (
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
)
"""Modules with the names of their attributes that say how torch computes."""


@contextmanager
def state_kept() -> Iterator[None]:
    """Leave random generators, the number of threads and the back ends of torch as they are when the block begins."""
    threads, switches = torch.get_num_threads(), [getattr(module, name) for module, name in _SWITCHES]
    python, cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 (it may be the caller's)
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        for (module, name), value in zip(_SWITCHES, switches, strict=True):
            setattr(module, name, value)
        torch.set_num_threads(threads)
