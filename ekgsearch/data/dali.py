"""The pipelines of DALI; nothing else imports it.

On the CPU DALI's resize costs four times that of torch (1.17 against 0.29 ms for two views of one picture, process time
of one core) and its colour transform eight times, so that only the decoder is used there.
"""

import functools
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ekgsearch.data import choices
from ekgsearch.data.batching import LoaderSettings
from ekgsearch.data.colours import ColourMap
from ekgsearch.data.decode import open_picture

logger = logging.getLogger(__name__)

_GREY_DOT = b"P6 1 1 255\n\x80\x80\x80"


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Say why DALI cannot decode on a device; None if it can, which is tried once."""
    try:
        pipeline = _build_decoder(1, 1, device, 0, 1)
        pipeline.run(pictures=[np.frombuffer(_GREY_DOT, np.uint8)])
    except ImportError as error:
        return f"nvidia.dali cannot be imported ({error})"
    except RuntimeError as error:
        return f"DALI cannot decode on {device} ({_first_line(error)})"
    return None


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
        self._pipeline = _build_decoder(*self._arguments)

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
            self._pipeline = _build_decoder(*self._arguments)
            return self._run([as_ppm(data) for data in pictures], feeds)

    def _run(self, pictures: Sequence[bytes], feeds: Mapping[str, np.ndarray]) -> Sequence[Any]:
        encoded = [np.frombuffer(data, np.uint8) for data in pictures]
        outputs: Sequence[Any] = self._pipeline.run(pictures=encoded, **feeds)
        return outputs


class ArrayViews:
    """A DALI pipeline that makes views of images of one size: colour, crop, mirror, normalise."""

    def __init__(self, settings: LoaderSettings, batch_size: int, shape: tuple[int, int, int]) -> None:
        """Build the pipeline.

        Args:
            settings: views, augmentation, normalisation, seed, threads and device.
            batch_size: images at most.
            shape: channels, height and width of the images, pixels.
        """
        self._settings = settings
        self._shape = shape
        self._pipeline = _build_arrays(settings, batch_size, shape[1:])

    def run(self, pixels: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Make the views (B, V, C, H, W), float32, of images (B, C, H, W), uint8, with ids (B,)."""
        feeds = {"pixels": pixels.cpu().permute(0, 2, 3, 1)}
        for view in range(self._settings.views):
            draws = choices.choose(ids.cpu(), seed=self._settings.seed, epoch=epoch, view=view)
            feeds |= {f"{name}{view}": values for name, values in self._feeds(draws).items()}
        outputs = self._pipeline.run(**{name: values.contiguous().numpy() for name, values in feeds.items()})
        return torch.stack([copied(output) for output in outputs], dim=1)

    def _feeds(self, draws: Tensor) -> dict[str, Tensor]:
        """Inputs of one view."""
        augmentation = self._settings.augmentation
        feeds = {"mirrored": (choices.mirrored(draws) & augmentation.flip).to(torch.int32)}
        if augmentation.changes_colour:
            colours = ColourMap.chosen(draws, augmentation, self._shape[0])
            feeds |= {"matrix": colours.matrix, "mean_matrix": colours.mean_matrix, "offset": colours.offset}
        if augmentation.crop == "resized":
            part, sides = choices.parts(draws), torch.tensor(self._shape[1:])
            start = (1.0 - part) * choices.offsets(draws)
            feeds |= {"start": (start * sides).float(), "end": ((start + part) * sides).float()}
        else:
            feeds["shift"] = choices.shifts(draws, augmentation.pad).to(torch.int32)
        return feeds


def as_ppm(data: bytes) -> bytes:
    """Turn a picture that decoders understand differently into one that all understand alike; a PPM stays as it is."""
    if data.startswith(b"P6"):
        return data
    file = io.BytesIO()
    Image.fromarray(np.asarray(open_picture(data))).save(file, "PPM")
    return file.getvalue()


def copied(output: Any) -> Tensor:
    """Copy an output of DALI, whose memory is used again by the next run."""
    return from_dlpack(output.as_tensor()).clone()


def _crop_feeds(crops: Crops) -> dict[str, np.ndarray]:
    feeds = {}
    for number in range(crops.boxes.shape[1]):
        box, window = crops.boxes[:, number].to(torch.int32).numpy(), crops.windows[:, number].to(torch.float32).numpy()
        feeds[f"corner{number}"], feeds[f"extent{number}"] = box[:, :2], box[:, 2:]
        feeds[f"start{number}"], feeds[f"end{number}"] = window[:, :2], window[:, :2] + window[:, 2:]
    return {name: np.ascontiguousarray(values) for name, values in feeds.items()}


def _build_decoder(batch_size: int, threads: int, device: torch.device, crops: int, size: int) -> Any:
    """Build a pipeline with the inputs `pictures` and, for each crop, those of `_crop_feeds`."""
    from nvidia.dali import fn, types

    # What is decoded as it is stored is upright, and readers of EXIF disagree about damaged blocks: orientation is off.
    # The engines of a GPU that decode JPEG give other levels than its kernels, and share a batch out as it comes:
    # without them a picture has the same pixels in any batch.
    on_gpu = {"device": "mixed", "jpeg_fancy_upsampling": True, "hw_decoder_load": 0.0}
    where = on_gpu if device.type == "cuda" else {"device": "cpu"}
    pipeline = _empty_pipeline(batch_size, threads, device)
    with pipeline:
        pictures = fn.decoders.image(
            _source("pictures", types.UINT8), output_type=types.RGB, adjust_orientation=False, **where
        )
        parts = [
            fn.resize(
                fn.slice(pictures, _source(f"corner{n}", types.INT32), _source(f"extent{n}", types.INT32), axes=[0, 1]),
                roi_start=_source(f"start{n}", types.FLOAT),
                roi_end=_source(f"end{n}", types.FLOAT),
                size=[size, size],
                interp_type=types.INTERP_LINEAR,
                antialias=True,
            )
            for n in range(crops)
        ]
        pipeline.set_outputs(*(parts or [pictures]))
    pipeline.build()
    return pipeline


def _build_arrays(settings: LoaderSettings, batch_size: int, size: tuple[int, int]) -> Any:
    """Build a pipeline with the input `pixels` and, for each view, those of `ArrayViews`."""
    from nvidia.dali import fn, math, types

    augmentation, normalisation = settings.augmentation, settings.normalisation
    pipeline = _empty_pipeline(batch_size, settings.threads, settings.device)
    with pipeline:
        pixels = fn.external_source(name="pixels", dtype=types.UINT8, ndim=3, layout="HWC")
        if settings.device.type == "cuda":
            pixels = pixels.gpu()
        views = []
        for view in range(settings.views):
            out = pixels
            if augmentation.changes_colour:
                matrix, mean_matrix = (_source(f"{name}{view}", types.FLOAT, 2) for name in ("matrix", "mean_matrix"))
                mean = fn.coord_transform(fn.reductions.mean(out, axes=[0, 1], keep_dims=True), M=mean_matrix)
                out = fn.coord_transform(out, M=matrix, T=_source(f"offset{view}", types.FLOAT)) + mean
                out = math.clamp(out, 0.0, 255.0)
            if augmentation.crop == "resized":
                out = fn.resize(
                    out,
                    roi_start=_source(f"start{view}", types.FLOAT),
                    roi_end=_source(f"end{view}", types.FLOAT),
                    size=list(size),
                    interp_type=types.INTERP_LINEAR,
                    antialias=False,
                    dtype=types.FLOAT,
                )
            out = fn.crop_mirror_normalize(
                out,
                mean=list(normalisation.mean),
                std=list(normalisation.std),
                mirror=_source(f"mirrored{view}", types.INT32, 0),
                dtype=types.FLOAT,
                output_layout="CHW",
            )
            if augmentation.crop == "pad":
                shift = _source(f"shift{view}", types.INT32)
                out = fn.slice(out, shift, list(size), axes=[1, 2], out_of_bounds_policy="pad", fill_values=0.0)
            views.append(out)
        pipeline.set_outputs(*views)
    pipeline.build()
    return pipeline


def _empty_pipeline(batch_size: int, threads: int, device: torch.device) -> Any:
    from nvidia.dali import Pipeline

    device_id = (device.index or 0) if device.type == "cuda" else None
    return Pipeline(batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=1)


def _source(name: str, dtype: Any, ndim: int = 1) -> Any:
    from nvidia.dali import fn

    return fn.external_source(name=name, dtype=dtype, ndim=ndim)


def _first_line(error: RuntimeError) -> str:
    """What DALI says went wrong, without its own traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Critical error")), "no reason given")
