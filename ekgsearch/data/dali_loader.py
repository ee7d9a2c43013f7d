"""The loader of DALI: it decodes, on a GPU it also cuts and resizes; all that is random is chosen beforehand.

On the CPU the views have the bits of torch's loader. On a GPU pictures stay where they were decoded; DALI's decoder and
filter may differ from torch's by some levels.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ekgsearch.data.batching import LoaderSettings, Pixels, ReadBatch, ReadingLoader, labels_of, to_device
from ekgsearch.data.dali import ArrayViews, Crops, Decoder, as_ppm, copied
from ekgsearch.data.damage import StandIns
from ekgsearch.data.decode import middle_part, square_geometry, square_pixels
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import ImageSet
from ekgsearch.data.picture_views import PictureViews
from ekgsearch.data.torch_loader import square_views

Render = Callable[[ReadBatch[Pixels], int], Tensor]
"""Makes the views (B, V, 3, H, W) of one epoch of what was read."""

PictureRender = Render[list[bytes]]
"""The same of encoded pictures."""


def dali_loader(
    images: EncodedImages, settings: LoaderSettings, ids: Tensor, *, crop_with_dali: bool | None = None
) -> ReadingLoader[list[bytes]]:
    """Decode each picture once with DALI and make all its views.

    Args:
        images: the pictures, in RGB.
        settings: what decides the batches; DALI decodes on `device`.
        ids: image ids in use (M,), int64.
        crop_with_dali: whether DALI also cuts and resizes; None where it decodes on a GPU.
    """
    in_pipeline = settings.device.type == "cuda" if crop_with_dali is None else crop_with_dali
    squares = settings.augmentation.crop == "pad"
    stand_ins = StandIns(images, ids, max_share=settings.max_damaged)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="pictures")
    crops = (1 if squares else settings.views) if in_pipeline else 0
    decoder = Decoder(_share(settings, ids), settings.threads, settings.device, crops=crops, size=images.image_size)

    def stored(position: int, image_id: int, data: bytes) -> bytes:
        return data if images.images[image_id].plain else as_ppm(data)

    def read(batch: Tensor, epoch: int) -> ReadBatch[list[bytes]]:
        found, pictures = stand_ins.read(batch, stored, pool)
        return ReadBatch(found, labels_of(images, found, settings), pictures, int((found != batch).sum()))

    if squares:
        render = _squares(images, settings, decoder, None if in_pipeline else pool)
    elif in_pipeline:
        render = _crops(images, settings, decoder)
    else:
        render = _pictures(images, settings, decoder, pool)
    render = _on_stream(render, settings.device)
    return ReadingLoader(
        settings, ids, read=read, render=render, render_ahead=True, shape=images.image_shape, stand_ins=stand_ins
    )


def array_loader(images: ImageSet, settings: LoaderSettings, ids: Tensor) -> ReadingLoader[Tensor]:
    """Make views of images that are read as pixels.

    There is nothing to decode, so that torch's loader is the faster one; this one is for comparing them.

    Args:
        images: images of one size.
        settings: what decides the batches.
        ids: image ids in use (M,), int64.
    """
    channels, height, width = images.read(ids[:1]).shape[1:]
    shape = (channels, height, width)
    views = ArrayViews(settings, _share(settings, ids), shape)

    def read(batch: Tensor, epoch: int) -> ReadBatch[Tensor]:
        return ReadBatch(batch, labels_of(images, batch, settings), images.read(batch))

    def render(batch: ReadBatch[Tensor], epoch: int) -> Tensor:
        return views.run(batch.pixels, batch.ids, epoch)

    render_views = _on_stream(render, settings.device)
    return ReadingLoader(settings, ids, read=read, render=render_views, render_ahead=True, shape=shape)


def _share(settings: LoaderSettings, ids: Tensor) -> int:
    """Images of the largest part of a batch that one process takes."""
    return -(-min(settings.batch_size, len(ids)) // settings.world_size)


def _on_stream(render: Render[Pixels], device: torch.device) -> Render[Pixels]:
    """Let the kernels of a GPU that make views run beside those of the training, and end before DALI goes on."""
    if device.type != "cuda":
        return render
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def render_on_stream(batch: ReadBatch[Pixels], epoch: int) -> Tensor:
        with torch.cuda.stream(stream):
            views = render(batch, epoch)
        stream.synchronize()
        return views

    return render_on_stream


def _pictures(
    images: EncodedImages, settings: LoaderSettings, decoder: Decoder, pool: ThreadPoolExecutor
) -> PictureRender:
    """Views that torch cuts out of whole pictures."""
    views = PictureViews(images, settings)

    def render(batch: ReadBatch[list[bytes]], epoch: int) -> Tensor:
        plan, out = views.plan(batch.ids, epoch), views.empty(len(batch.ids))
        [decoded] = decoder.run(batch.pixels)

        def render_one(position: int) -> None:
            views.render(from_dlpack(decoded[position]), plan, position, out[position])

        list(pool.map(render_one, range(len(out))))
        return to_device(out, settings.device)

    return render


def _crops(images: EncodedImages, settings: LoaderSettings, decoder: Decoder) -> PictureRender:
    """Views that DALI cuts out of whole pictures; their colours change where they are."""
    views = PictureViews(images, settings)

    def render(batch: ReadBatch[list[bytes]], epoch: int) -> Tensor:
        plan = views.plan(batch.ids, epoch)
        windows = torch.cat([torch.zeros_like(plan.boxes[..., :2]), plan.boxes[..., 2:]], dim=2)
        outputs = decoder.run(batch.pixels, Crops(plan.boxes, windows))
        crops = torch.stack([copied(output) for output in outputs], dim=1)
        return views.finish(crops.permute(0, 1, 4, 2, 3), plan)

    return render


def _squares(
    images: EncodedImages, settings: LoaderSettings, decoder: Decoder, pool: ThreadPoolExecutor | None
) -> PictureRender:
    """Views of the centre square of each picture, which DALI cuts and resizes, or a pool of threads."""
    size, finish = images.image_size, square_views(settings)

    def by_dali(batch: ReadBatch[list[bytes]]) -> Tensor:
        sizes = [(images.images[image_id].height, images.images[image_id].width) for image_id in batch.ids.tolist()]
        boxes = torch.tensor([[[0, 0, height, width]] for height, width in sizes])
        windows = torch.tensor([[_centre(height, width, size)] for height, width in sizes])
        [squares] = decoder.run(batch.pixels, Crops(boxes, windows))
        return copied(squares).permute(0, 3, 1, 2)

    def by_pool(batch: ReadBatch[list[bytes]], pool: ThreadPoolExecutor) -> Tensor:
        [decoded] = decoder.run(batch.pixels)
        pictures = (Image.fromarray(np.asarray(decoded[position])) for position in range(len(batch.ids)))
        squares = pool.map(lambda picture: square_pixels(picture, size), pictures)
        return to_device(torch.from_numpy(np.stack(list(squares))), settings.device)

    def render(batch: ReadBatch[list[bytes]], epoch: int) -> Tensor:
        pixels = by_dali(batch) if pool is None else by_pool(batch, pool)
        ids = to_device(batch.ids, settings.device)
        return finish(ReadBatch(ids, batch.labels, pixels), epoch)

    return render


def _centre(height: int, width: int, size: int) -> tuple[float, float, float, float]:
    """Top, left, height and width of the part of a picture that `square_pixels` shows."""
    first_column, first_row, last_column, last_row = middle_part(width, height)
    width, height = last_column - first_column, last_row - first_row
    whole_width, whole_height, left, top = square_geometry(width, height, size)
    down, across = height / whole_height, width / whole_width
    return first_row + top * down, first_column + left * across, size * down, size * across
