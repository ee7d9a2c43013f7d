"""The loader of torch: views of images in memory as batches of tensors, views of pictures one picture at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ekgsearch.data.batching import LoaderSettings, ReadBatch, ReadingLoader, labels_of, to_device
from ekgsearch.data.damage import StandIns
from ekgsearch.data.decode import open_picture, pixels_of
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.data.picture_views import PictureViews
from ekgsearch.data.views import view


def tensor_loader(images: ImageSet, settings: LoaderSettings, ids: Tensor) -> ReadingLoader[Tensor]:
    """Make views of images that are read as pixels, on the device; see `square_views`.

    Args:
        images: images that are read as pixels.
        settings: what decides the batches.
        ids: image ids in use (M,), int64.
    """
    channels, height, width = images.read(ids[:0]).shape[1:]

    def read(batch: Tensor, epoch: int) -> ReadBatch[Tensor]:
        return moved(batch, labels_of(images, batch, settings), images.read(batch), settings.device)

    render = square_views(settings)
    shape = (channels, height, width)
    return ReadingLoader(settings, ids, read=read, render=render, render_ahead=False, shape=shape)


def encoded_loader(images: EncodedImages, settings: LoaderSettings, ids: Tensor) -> ReadingLoader[Tensor]:
    """Decode each picture once and make all its views.

    A "resized" crop is cut out of the whole picture, and its colours change after that, on far fewer pixels. A "pad"
    crop is cut out of the square that `EncodedImages.read` gives, as for any other images.

    Args:
        images: the pictures.
        settings: what decides the batches.
        ids: image ids in use (M,), int64.
    """
    if settings.augmentation.crop == "pad":
        return _squares_loader(images, settings, ids)
    stand_ins = StandIns(images, ids, max_share=settings.max_damaged)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
    views = PictureViews(images, settings)

    def read(batch: Tensor, epoch: int) -> ReadBatch[Tensor]:
        plan, out = views.plan(batch, epoch), views.empty(len(batch))
        wanted = batch.tolist()

        def make(position: int, image_id: int, data: bytes) -> None:
            picture = torch.from_numpy(pixels_of(open_picture(data, images.channels)))
            if image_id == wanted[position]:
                views.render(picture, plan, position, out[position])
            else:
                views.render(picture, views.plan(torch.tensor([image_id]), epoch), 0, out[position])

        found, _ = stand_ins.read(batch, make, pool)
        return moved(found, labels_of(images, found, settings), out, settings.device, int((found != batch).sum()))

    def render(batch: ReadBatch[Tensor], epoch: int) -> Tensor:
        return batch.pixels

    return ReadingLoader(
        settings, ids, read=read, render=render, render_ahead=False, shape=images.image_shape, stand_ins=stand_ins
    )


def _squares_loader(images: EncodedImages, settings: LoaderSettings, ids: Tensor) -> ReadingLoader[Tensor]:
    """Bring pictures to a square first, and shift that."""
    stand_ins = StandIns(images, ids, max_share=settings.max_damaged)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")

    def read(batch: Tensor, epoch: int) -> ReadBatch[Tensor]:
        found, squares = stand_ins.read_squares(batch, pool)
        return moved(found, labels_of(images, found, settings), squares, settings.device, int((found != batch).sum()))

    return ReadingLoader(
        settings,
        ids,
        read=read,
        render=square_views(settings),
        render_ahead=False,
        shape=images.image_shape,
        stand_ins=stand_ins,
    )


def moved(
    ids: Tensor, labels: Tensor | None, pixels: Tensor, device: torch.device, replaced: int = 0
) -> ReadBatch[Tensor]:
    """Bring what was read to the device of the network."""
    labels = None if labels is None else to_device(labels, device)
    return ReadBatch(to_device(ids, device), labels, to_device(pixels, device), replaced)


def square_views(settings: LoaderSettings) -> Callable[[ReadBatch[Tensor], int], Tensor]:
    """Make views of squares, all images of a batch at once, where they are; see `data.views.view`."""

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
