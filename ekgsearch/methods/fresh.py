"""Fresh weights in the place of trained ones."""

from collections.abc import Iterable

import torch
from torch import nn


def start_afresh(modules: Iterable[nn.Module], seed: int) -> None:
    """Draw the parameters of layers again by the rules of torch, and reset what norms have measured.

    Args:
        modules: those whose parameters are drawn; of each only its own.
        seed: of the draws; no other generator is touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in modules:
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
