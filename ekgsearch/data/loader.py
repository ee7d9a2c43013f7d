"""One contract for whatever turns stored images into the augmented views of an epoch, and the choice of who does it."""

import torch
from torch import Tensor

from ekgsearch.data import torch_loader
from ekgsearch.data.batching import LoadedBatch, Loader, LoaderName, LoaderSettings
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.errors import DataError

__all__ = ["LoadedBatch", "Loader", "LoaderName", "LoaderSettings", "open_loader"]


def open_loader(images: ImageSet, settings: LoaderSettings, ids: Tensor | None = None) -> Loader:
    """Open a loader of some images.

    Args:
        images: the images.
        settings: what decides the batches, and who makes them.
        ids: image ids in use (M,), int64; None for all.

    Raises:
        DataError: no images.
    """
    ids = torch.arange(len(images)) if ids is None else ids.cpu().to(torch.int64)
    if not len(ids):
        raise DataError("loader: expected images, found none")
    if isinstance(images, EncodedImages):
        return torch_loader.encoded_loader(images, settings, ids)
    return torch_loader.tensor_loader(images, settings, ids)
