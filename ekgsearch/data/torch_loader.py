"""The loader of torch: views of images in memory as batches of tensors, views of pictures one picture at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ekgsearch.data import choices
from ekgsearch.data.batching import LoaderSettings, ReadBatch, ReadingLoader, to_device
from ekgsearch.data.damage import StandIns
from ekgsearch.data.decode import open_picture, square_pixels
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.data.views import recoloured, view


def tensor_loader(images: ImageSet, settings: LoaderSettings, ids: Tensor) -> ReadingLoader[Tensor]:
    """Make views of square pixels, all images of a batch at once, on the device; see `data.views.view`.

    Args:
        images: images that are read as pixels.
        settings: what decides the batches.
        ids: image ids in use (M,), int64.
    """

    def read(batch: Tensor, epoch: int) -> ReadBatch[Tensor]:
        return _moved(batch, images.labels[batch], images.read(batch), settings.device)

    return ReadingLoader(settings, ids, read=read, render=_square_views(settings), render_ahead=False)


def encoded_loader(images: EncodedImages, settings: LoaderSettings, ids: Tensor) -> ReadingLoader[Tensor]:
    """Decode each picture once and make all its views.

    A "resized" crop is cut out of the whole picture, and its colours change after that, on far fewer pixels. A "pad"
    crop is cut out of the square that `EncodedImages.read` gives, as for any other images.

    Args:
        images: the pictures.
        settings: what decides the batches.
        ids: image ids in use (M,), int64.
    """
    stand_ins = StandIns(images, ids, max_share=settings.max_damaged)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
    from_whole = settings.augmentation.crop == "resized"

    def read(batch: Tensor, epoch: int) -> ReadBatch[Tensor]:
        def make(image_id: int, data: bytes) -> Tensor:
            picture = open_picture(data)
            if from_whole:
                return picture_views(np.asarray(picture), image_id, epoch, images.image_size, settings)
            return torch.from_numpy(square_pixels(picture, images.image_size))

        found, made = stand_ins.read(batch, make, pool)
        replaced = int((found != batch).sum())
        return _moved(found, images.labels[found], torch.stack(made), settings.device, replaced)

    def keep(batch: ReadBatch[Tensor], epoch: int) -> Tensor:
        return batch.pixels

    render = keep if from_whole else _square_views(settings)
    return ReadingLoader(settings, ids, read=read, render=render, render_ahead=False, stand_ins=stand_ins)


def picture_views(picture: np.ndarray, image_id: int, epoch: int, size: int, settings: LoaderSettings) -> Tensor:
    """Make the views (V, 3, size, size), float32, of one picture; the order is crop, colour, mirror.

    Args:
        picture: whole picture (H, W, 3), uint8.
        image_id: its id.
        epoch: epoch.
        size: height and width of a view, pixels.
        settings: number of views, seed and augmentation.
    """
    from torchvision.transforms.v2.functional import resized_crop

    ids, augmentation = torch.tensor([image_id]), settings.augmentation
    numbers = range(settings.views)
    draws = torch.cat([choices.choose(ids, seed=settings.seed, epoch=epoch, view=view) for view in numbers])
    # torch warns of memory that it may not write to; nothing here writes to the picture.
    whole = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    sizes = torch.tensor([picture.shape[:2]]).expand(settings.views, 2)
    crops = torch.stack([resized_crop(whole, *box, [size, size]) for box in choices.boxes(draws, sizes).tolist()])
    views = settings.normalisation(recoloured(crops, draws, augmentation) if augmentation.changes_colour else crops)
    if augmentation.flip:
        views = torch.where(choices.mirrored(draws)[:, None, None, None], views.flip(3), views)
    return views


def _moved(ids: Tensor, labels: Tensor, pixels: Tensor, device: torch.device, replaced: int = 0) -> ReadBatch[Tensor]:
    ids, labels, pixels = (to_device(values, device) for values in (ids, labels, pixels))
    return ReadBatch(ids, labels, pixels, replaced)


def _square_views(settings: LoaderSettings) -> Callable[[ReadBatch[Tensor], int], Tensor]:
    def render(batch: ReadBatch[Tensor], epoch: int) -> Tensor:
        return torch.stack(
            [
                view(
                    batch.pixels,
                    batch.ids,
                    augmentation=settings.augmentation,
                    normalisation=settings.normalisation,
                    seed=settings.seed,
                    epoch=epoch,
                    view=index,
                )
                for index in range(settings.views)
            ],
            dim=1,
        )

    return render
