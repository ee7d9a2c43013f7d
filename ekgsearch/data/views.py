"""Normalised and augmented views of a batch of images, which can be made again from the image ids alone."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ekgsearch.data import choices
from ekgsearch.data.choices import LUMA
from ekgsearch.errors import DataError

Crop = Literal["pad", "resized"]
"""Random crop of the padded image, or of a random part of it that is enlarged again."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Subtract a mean from every channel and divide by a standard deviation.

    Attributes:
        mean: of each channel, such as red, green and blue, in pixel units 0..255.
        std: of the same, in pixel units 0..255.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise DataError(
                f"normalisation needs a mean and a positive deviation of each channel in pixel units 0..255, "
                f"found {self.mean} and {self.std}"
            )

    def check(self, channels: int) -> None:
        """Raise a DataError where images have another number of channels."""
        if channels != len(self.mean):
            raise DataError(f"expected images of {len(self.mean)} channels, as the normalisation has, found {channels}")

    def __call__(self, images: Tensor) -> Tensor:
        """Map pixels (B, C, H, W) in 0..255, uint8 or float, to the network's input, float32.

        Raises:
            DataError: the images have another number of channels.
        """
        self.check(images.shape[1])
        mean, std = (_per_channel(torch.tensor(values, device=images.device)) for values in (self.mean, self.std))
        return (images.to(torch.float32) - mean) / std


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done at random to an image of a view; the order is colour, crop, flip.

    Of images with alpha the colours change and alpha stays; grey changes as a colour picture that shows the same would.

    Attributes:
        pad: pixels around the image, of the mean colour, before a crop of the original size ("pad" crop only).
        flip: mirror left and right with probability 1/2.
        brightness: add a number up to this size to pixels in 0..1; 0 is off.
        contrast: multiply the distance to the channel's mean by 1 +- this; 0 is off.
        saturation: multiply the distance to grey by 1 +- this; 0 is off.
        lighting: standard deviation of the noise along the principal components of ImageNet's colours; 0 is off.
        crop: "pad" for small images, "resized" for ImageNet.
    """

    pad: int = 4
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    lighting: float = 0.0
    crop: Crop = "pad"

    def __post_init__(self) -> None:
        numbers = {
            "pad": self.pad,
            "brightness": self.brightness,
            "contrast": self.contrast,
            "saturation": self.saturation,
            "lighting": self.lighting,
        }
        for name, number in numbers.items():
            if number < 0:
                raise DataError(f"augmentation: {name} must not be negative, found {number}")
        if self.crop not in ("pad", "resized"):
            raise DataError(f"augmentation: crop must be pad or resized, found {self.crop!r}")

    @property
    def changes_colour(self) -> bool:
        """Whether any colour changes."""
        return any((self.brightness, self.contrast, self.saturation, self.lighting))


def num_colours(channels: int) -> int:
    """Channels whose colour can change: grey, or red, green and blue before alpha.

    Raises:
        DataError: it is not known what the channels are.
    """
    if channels not in (1, 3, 4):
        raise DataError(
            f"colours change in images of 1, 3 or 4 channels (grey, RGB, RGBA), found {channels}; "
            "set brightness, contrast, saturation and lighting to 0"
        )
    return min(channels, 3)


def view(
    images: Tensor,
    ids: Tensor,
    *,
    augmentation: Augmentation,
    normalisation: Normalisation,
    seed: int,
    epoch: int,
    view: int,
) -> Tensor:
    """Make one augmented, normalised view of each image.

    Every random number is a function of (seed, epoch, view, image id) and of what it is for: the same view comes out
    in whatever batch, order or process, and on whatever device up to rounding.

    Args:
        images: pixels (B, C, H, W), uint8.
        ids: image ids (B,), int64.
        augmentation: what is done.
        normalisation: of the network.
        seed: of the job or one derived from it.
        epoch: epoch.
        view: number of the view of this epoch.

    Returns:
        Views (B, C, H, W), float32, on the device of the images.
    """
    draws = choices.choose(ids.to(images.device), seed=seed, epoch=epoch, view=view)
    out = normalisation(recoloured(images, draws, augmentation) if augmentation.changes_colour else images)
    if augmentation.crop == "resized":
        return _resized_crop(out, draws, augmentation.flip)
    if augmentation.pad or augmentation.flip:
        return _padded_crop(out, draws, augmentation.pad, augmentation.flip)
    return out


def recoloured(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Change contrast, brightness, saturation and light, in this order.

    Args:
        images: pixels (B, C, H, W), uint8; contrast is about the mean of each image's channels.
        draws: of the view, from `choices.choose`.
        augmentation: how much changes.

    Returns:
        Pixels (B, C, H, W), float32, in 0..255.

    Raises:
        DataError: images of so many channels have no known colours.
    """
    num = num_colours(images.shape[1])
    images, alpha = images[:, :num], images[:, num:]
    brightness, contrast, saturation = choices.colours(draws)[:, :, None, None, None].unbind(1)
    # Sums of whole numbers are exact, so that the mean of an image does not depend on how the batch is summed.
    mean = images.sum((2, 3), dtype=torch.int64)[:, :, None, None].to(torch.float32) / (
        255 * images.shape[2] * images.shape[3]
    )
    pixels = images.to(torch.float32) / 255.0
    pixels = (pixels - mean) * (1.0 + augmentation.contrast * contrast) + mean
    pixels = pixels + augmentation.brightness * brightness
    if num == 3:
        red, green, blue = pixels.unbind(1)
        grey = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]
        pixels = grey + (pixels - grey) * (1.0 + augmentation.saturation * saturation)
    if augmentation.lighting:
        pixels = pixels + augmentation.lighting * choices.light(draws, num).to(torch.float32)[:, :, None, None]
    pixels = pixels.clamp(0.0, 1.0) * 255.0
    return torch.cat([pixels, alpha.to(torch.float32)], dim=1) if alpha.shape[1] else pixels


def _padded_crop(images: Tensor, draws: Tensor, pad: int, flip: bool) -> Tensor:
    """Shift each image by up to the padding, fill with zeros, and mirror half of them."""
    batch, channels, height, width = images.shape
    shift = choices.shifts(draws, pad)
    rows = torch.arange(height, device=images.device) + shift[:, :1]
    columns = torch.arange(width, device=images.device) + shift[:, 1:]
    if flip:
        columns = torch.where(choices.mirrored(draws)[:, None], width - 1 - columns, columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    moved = images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, channels, -1))
    return moved.view(batch, channels, height, width) * inside[:, None]


def _resized_crop(images: Tensor, draws: Tensor, flip: bool) -> Tensor:
    """Enlarge a random part of each image to the whole size (bilinear), and mirror half of them."""
    _, _, height, width = images.shape
    part, offset = choices.parts(draws), choices.offsets(draws)
    rows = _positions(height, part[:, 0], offset[:, 0])
    columns = _positions(width, part[:, 1], offset[:, 1])
    if flip:
        columns = torch.where(choices.mirrored(draws)[:, None], columns.flip(1), columns)
    batch = len(images)
    across = columns[:, None, :].expand(batch, height, width)
    grid = torch.stack((across, rows[:, :, None].expand(batch, height, width)), dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def _positions(size: int, part: Tensor, offset: Tensor) -> Tensor:
    """Pixel centres (B, size) of a part of a side, in the -1..1 coordinates of `grid_sample`."""
    centres = (torch.arange(size, device=part.device, dtype=part.dtype) + 0.5) / size
    start = (1.0 - part) * offset
    return 2.0 * (start[:, None] + part[:, None] * centres) - 1.0


def _per_channel(values: Tensor) -> Tensor:
    return values.to(torch.float32)[None, :, None, None]
