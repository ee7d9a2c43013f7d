"""One contract for whatever turns stored images into the augmented views of an epoch, and the choice of who does it."""

import functools
import logging

import torch
from torch import Tensor

from ekgsearch.data import dali, dali_loader, torch_loader
from ekgsearch.data.batching import LoadedBatch, Loader, LoaderName, LoaderSettings
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.data.views import num_colours
from ekgsearch.errors import DataError

logger = logging.getLogger(__name__)

__all__ = ["LoadedBatch", "Loader", "LoaderName", "LoaderSettings", "open_loader"]


def open_loader(images: ImageSet, settings: LoaderSettings, ids: Tensor | None = None) -> Loader:
    """Open a loader of some images.

    Args:
        images: the images.
        settings: what decides the batches, and who makes them; the log says who, and why it is not DALI.
        ids: image ids in use (M,), int64; None for all.

    Raises:
        DataError: no images, DALI is asked for and cannot be used, or the settings are for images of other channels.
    """
    ids = torch.arange(len(images)) if ids is None else ids.cpu().to(torch.int64)
    if not len(ids):
        raise DataError("loader: expected images, found none")
    settings.normalisation.check(images.channels)
    if settings.augmentation.changes_colour:
        num_colours(images.channels)
    reason = "the job says so" if settings.loader == "torch" else dali.why_not(settings.device)
    if isinstance(images, EncodedImages) and images.channels != 3:
        reason = reason or f"it decodes pictures to 3 channels here, and data.channels is {images.channels}"
    if reason and settings.loader == "dali":
        raise DataError(f"loader: dali was asked for, but {reason}; use auto or torch")
    if settings.loader == "auto" and not isinstance(images, EncodedImages):
        reason = "these images are decoded already, which leaves it nothing to do"
    _say_once(f"loader: torch, not DALI, since {reason}" if reason else f"loader: DALI, on {settings.device}")
    if isinstance(images, EncodedImages):
        return (torch_loader.encoded_loader if reason else dali_loader.dali_loader)(images, settings, ids)
    return (torch_loader.tensor_loader if reason else dali_loader.array_loader)(images, settings, ids)


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
