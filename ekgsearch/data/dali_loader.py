"""The loader of DALI: it decodes, on a GPU it also cuts and resizes; what is done to a picture is chosen beforehand.

On the CPU DALI's resize costs four times that of torch (1.17 against 0.29 ms for two views of one picture, process time
of one core) and its colour transform eight times, so that only the decoder is used there. The views then have the bits
of torch's loader. On a GPU the pictures stay there; DALI's decoder and filter may differ from torch's by some levels.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ekgsearch.data.batching import LoaderSettings, ReadBatch, ReadingLoader, to_device
from ekgsearch.data.damage import StandIns
from ekgsearch.data.decode import open_picture, square_geometry, square_pixels
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.picture_views import PictureViews
from ekgsearch.data.torch_loader import square_views

logger = logging.getLogger(__name__)

Render = Callable[[ReadBatch[list[bytes]], int], Tensor]
"""Makes the views (B, V, 3, H, W) of one epoch of encoded pictures."""


def why_not() -> str | None:
    """Say why DALI cannot run here; None if it can."""
    try:
        import nvidia.dali
    except ImportError as error:
        return f"nvidia.dali cannot be imported ({error})"
    return None if hasattr(nvidia.dali, "Pipeline") else "nvidia.dali is installed only in parts"


@dataclass(frozen=True, slots=True)
class Crops:
    """Parts of some pictures that are cut out and resized by DALI.

    Attributes:
        boxes: top, left, height and width (B, C, 4), int64, pixels, of the part; the filter sees nothing outside.
        windows: top, left, height and width (B, C, 4), float, pixels of the box, of what fills the result.
    """

    boxes: Tensor
    windows: Tensor


class Decoder:
    """A DALI pipeline that decodes a batch of pictures, and replaces itself after a failure."""

    def __init__(self, batch_size: int, threads: int, device: torch.device, *, crops: int, size: int) -> None:
        """Build the pipeline.

        Args:
            batch_size: pictures at most.
            threads: of DALI.
            device: where pictures are decoded.
            crops: parts cut out of each picture; 0 gives whole pictures.
            size: height and width that parts are resized to, pixels.
        """
        self._arguments = (batch_size, threads, device, crops, size)
        self._pipeline = _build(*self._arguments)

    def run(self, pictures: Sequence[bytes], crops: Crops | None = None) -> Sequence[Any]:
        """Decode pictures.

        Args:
            pictures: sound JPEG, PNG or PPM files.
            crops: parts that are cut out, if the pipeline was built for them.

        Returns:
            DALI's outputs, valid until the next call: the pictures, or a list (B, size, size, 3) for each crop.
        """
        feeds = {} if crops is None else _crop_feeds(crops)
        try:
            return self._run(pictures, feeds)
        except RuntimeError as error:
            # A pipeline object is dead after its first error. The pictures were verified, by another decoder.
            logger.warning("DALI could not decode a batch, it is decoded without DALI: %s", _first_line(error))
            self._pipeline = _build(*self._arguments)
            return self._run([as_ppm(data) for data in pictures], feeds)

    def _run(self, pictures: Sequence[bytes], feeds: Mapping[str, np.ndarray]) -> Sequence[Any]:
        encoded = [np.frombuffer(data, np.uint8) for data in pictures]
        outputs: Sequence[Any] = self._pipeline.run(pictures=encoded, **feeds)
        return outputs


def as_ppm(data: bytes) -> bytes:
    """Turn a picture that decoders understand differently into one that all understand alike; a PPM stays as it is."""
    if data.startswith(b"P6"):
        return data
    file = io.BytesIO()
    Image.fromarray(np.asarray(open_picture(data))).save(file, "PPM")
    return file.getvalue()


def dali_loader(
    images: EncodedImages, settings: LoaderSettings, ids: Tensor, *, crop_with_dali: bool | None = None
) -> ReadingLoader[list[bytes]]:
    """Decode each picture once with DALI and make all its views.

    Args:
        images: the pictures.
        settings: what decides the batches; DALI decodes on `device`.
        ids: image ids in use (M,), int64.
        crop_with_dali: whether DALI also cuts and resizes; None where it decodes on a GPU.
    """
    in_pipeline = settings.device.type == "cuda" if crop_with_dali is None else crop_with_dali
    squares = settings.augmentation.crop == "pad"
    stand_ins = StandIns(images, ids, max_share=settings.max_damaged)
    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="pictures")
    share = -(-min(settings.batch_size, len(ids)) // settings.world_size)
    crops = (1 if squares else settings.views) if in_pipeline else 0
    decoder = Decoder(share, settings.threads, settings.device, crops=crops, size=images.image_size)

    def stored(position: int, image_id: int, data: bytes) -> bytes:
        return data if images.images[image_id].plain else as_ppm(data)

    def read(batch: Tensor, epoch: int) -> ReadBatch[list[bytes]]:
        found, pictures = stand_ins.read(batch, stored, pool)
        return ReadBatch(found, images.labels[found], pictures, int((found != batch).sum()))

    if squares:
        render = _squares(images, settings, decoder, None if in_pipeline else pool)
    elif in_pipeline:
        render = _crops(images, settings, decoder)
    else:
        render = _pictures(images, settings, decoder, pool)
    return ReadingLoader(settings, ids, read=read, render=render, render_ahead=True, stand_ins=stand_ins)


def _pictures(images: EncodedImages, settings: LoaderSettings, decoder: Decoder, pool: ThreadPoolExecutor) -> Render:
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


def _crops(images: EncodedImages, settings: LoaderSettings, decoder: Decoder) -> Render:
    """Views that DALI cuts out of whole pictures; their colours change where they are."""
    views = PictureViews(images, settings)

    def render(batch: ReadBatch[list[bytes]], epoch: int) -> Tensor:
        plan = views.plan(batch.ids, epoch)
        windows = torch.cat([torch.zeros_like(plan.boxes[..., :2]), plan.boxes[..., 2:]], dim=2)
        outputs = decoder.run(batch.pixels, Crops(plan.boxes, windows))
        crops = torch.stack([_tensor(output) for output in outputs], dim=1)
        return views.finish(crops.permute(0, 1, 4, 2, 3), plan)

    return render


def _squares(
    images: EncodedImages, settings: LoaderSettings, decoder: Decoder, pool: ThreadPoolExecutor | None
) -> Render:
    """Views of the centre square of each picture, which DALI cuts and resizes, or a pool of threads."""
    size, finish = images.image_size, square_views(settings)

    def by_dali(batch: ReadBatch[list[bytes]]) -> Tensor:
        sizes = [(images.images[image_id].height, images.images[image_id].width) for image_id in batch.ids.tolist()]
        boxes = torch.tensor([[[0, 0, height, width]] for height, width in sizes])
        windows = torch.tensor([[_centre(height, width, size)] for height, width in sizes])
        [squares] = decoder.run(batch.pixels, Crops(boxes, windows))
        return _tensor(squares).permute(0, 3, 1, 2)

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
    whole_width, whole_height, left, top = square_geometry(width, height, size)
    down, across = height / whole_height, width / whole_width
    return top * down, left * across, size * down, size * across


def _tensor(output: Any) -> Tensor:
    """Copy an output of DALI, whose memory is used again by the next run."""
    return from_dlpack(output.as_tensor()).clone()


def _crop_feeds(crops: Crops) -> dict[str, np.ndarray]:
    feeds = {}
    for number in range(crops.boxes.shape[1]):
        box, window = crops.boxes[:, number].to(torch.int32).numpy(), crops.windows[:, number].to(torch.float32).numpy()
        feeds[f"corner{number}"], feeds[f"extent{number}"] = box[:, :2], box[:, 2:]
        feeds[f"start{number}"], feeds[f"end{number}"] = window[:, :2], window[:, :2] + window[:, 2:]
    return {name: np.ascontiguousarray(values) for name, values in feeds.items()}


def _build(batch_size: int, threads: int, device: torch.device, crops: int, size: int) -> Any:
    """Build a pipeline with the inputs `pictures` and, for each crop, those of `_crop_feeds`."""
    from nvidia.dali import Pipeline, fn, types

    on_gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if on_gpu else None,
        prefetch_queue_depth=1,
    )

    def source(name: str, dtype: Any) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=1)

    # The engines of a GPU that decode JPEG give other levels than its kernels, and share a batch out as it comes:
    # without them a picture has the same pixels in any batch.
    mixed = {"device": "mixed", "jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0} if on_gpu else {"device": "cpu"}
    with pipeline:
        pictures = fn.decoders.image(source("pictures", types.UINT8), output_type=types.RGB, **mixed)
        parts = [
            fn.resize(
                fn.slice(pictures, source(f"corner{n}", types.INT32), source(f"extent{n}", types.INT32), axes=[0, 1]),
                roi_start=source(f"start{n}", types.FLOAT),
                roi_end=source(f"end{n}", types.FLOAT),
                size=[size, size],
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
            for n in range(crops)
        ]
        pipeline.set_outputs(*(parts or [pictures]))
    pipeline.build()
    return pipeline


def _first_line(error: RuntimeError) -> str:
    """What DALI says went wrong, without its own traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Critical error")), "no reason given")
