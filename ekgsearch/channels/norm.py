"""The two modes of batch normalisation, made explicit; and running statistics computed anew."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.errors import NetworkError
from ekgsearch.records import NormMode


@contextmanager
def norm_mode(network: nn.Module, mode: NormMode) -> Iterator[nn.Module]:
    """Run a network in evaluation mode, with batch norms in one of their two modes.

    "batch" normalises by the statistics of each batch and neither reads nor writes the running ones (how EKG,
    arXiv 2203.02651, evaluates during the search); "running" is ordinary evaluation. Dropout is off in both. On
    leaving, every module is as it was.

    Args:
        network: any module.
        mode: "batch" or "running".

    Yields:
        The same network.

    Raises:
        NetworkError: the mode is neither.
    """
    if mode not in ("batch", "running"):
        raise NetworkError(f"expected norm mode 'batch' or 'running', found {mode!r}")
    modules = list(network.modules())
    norms = [module for module in modules if isinstance(module, _BatchNorm)]
    training = [module.training for module in modules]
    tracking = [norm.track_running_stats for norm in norms]
    try:
        network.eval()
        if mode == "batch":
            for norm in norms:
                # in training mode without tracking, torch normalises by the batch and leaves the buffers alone
                norm.training, norm.track_running_stats = True, False
        yield network
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training
        for norm, was_tracking in zip(norms, tracking, strict=True):
            norm.track_running_stats = was_tracking


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch norms by their exact average over batches.

    Each batch counts the same, whatever its size. Weights do not change and dropout is off; a network without batch
    norms that track statistics is left alone. If a batch fails, the old statistics are put back.

    Args:
        network: module whose running statistics are replaced, in place.
        batches: normalised float images (B, 3, H, W), at least one batch.

    Raises:
        NetworkError: there is no batch.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    saved = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
    seen, done = 0, False
    try:
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch then keeps the cumulative average
            norm.training = True
        with torch.no_grad():
            for images in batches:
                network(images)
                seen += 1
        if not seen:
            raise NetworkError("expected at least one batch to recalibrate the running statistics on, found none")
        done = True
    finally:
        for norm, momentum, buffers in zip(norms, momenta, saved, strict=True):
            norm.momentum = momentum
            if not done:
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
        for module, was_training in modes:
            module.training = was_training
