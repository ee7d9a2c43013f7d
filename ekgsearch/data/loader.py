"""One contract for whatever turns stored images into the augmented views of an epoch, and the choice of who does it."""

import functools
import logging

import torch
from torch import Tensor

from ekgsearch.data import dali_loader, torch_loader
from ekgsearch.data.batching import LoadedBatch, Loader, LoaderName, LoaderSettings
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.errors import DataError

logger = logging.getLogger(__name__)

__all__ = ["LoadedBatch", "Loader", "LoaderName", "LoaderSettings", "open_loader"]


def open_loader(images: ImageSet, settings: LoaderSettings, ids: Tensor | None = None) -> Loader:
    """Open a loader of some images.

    Args:
        images: the images.
        settings: what decides the batches, and who makes them; `auto` says in the log why DALI is not taken.
        ids: image ids in use (M,), int64; None for all.

    Raises:
        DataError: no images, or DALI is asked for and cannot be used.
    """
    ids = torch.arange(len(images)) if ids is None else ids.cpu().to(torch.int64)
    if not len(ids):
        raise DataError("loader: expected images, found none")
    reason = None if settings.loader == "torch" else _why_not_dali(images)
    if reason and settings.loader == "dali":
        raise DataError(f"loader: dali was asked for, but {reason}; use auto or torch")
    if reason:
        _say_once(f"loader: torch, not DALI, since {reason}")
    if not isinstance(images, EncodedImages):
        return torch_loader.tensor_loader(images, settings, ids)
    if reason or settings.loader == "torch":
        return torch_loader.encoded_loader(images, settings, ids)
    _say_once(f"loader: DALI, decoding on {settings.device}")
    return dali_loader.dali_loader(images, settings, ids)


def _why_not_dali(images: ImageSet) -> str | None:
    if not isinstance(images, EncodedImages):
        return "these images are decoded already and nothing is left for it to do"
    return dali_loader.why_not()


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
