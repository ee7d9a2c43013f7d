"""What is chosen at random for one view of an image: the mirror, the shift, the part of it, the colours.

Every choice is a function of (seed, epoch, view, image id) alone. Whatever makes the pixels, torch or DALI, on a CPU or
a GPU, is handed these choices and draws nothing itself, so that a view can be made again by any of them.
"""

import torch
from torch import Tensor

from ekgsearch.data.draws import uniforms

_FLIP, _TOP, _LEFT, _BRIGHTNESS, _CONTRAST, _SATURATION, _LIGHTING, _AREA, _RATIO = 0, 1, 2, 3, 4, 5, 6, 9, 10
_NUM_DRAWS = 11
"""Index of each random number of an image; lighting takes three."""

_MIN_AREA = 0.08
_MAX_LOG_RATIO = 0.28768207245178085
"""Parts of the image: at least 8 % of its area, sides at most 4:3 (arXiv 1409.4842, sec. 6)."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey."""

_PRINCIPAL_VALUES = (0.2175, 0.0188, 0.0045)
_PRINCIPAL_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Principal components of ImageNet pixels in 0..1, one per column (Krizhevsky et al., 2012, sec. 4.1)."""


def choose(ids: Tensor, *, seed: int, epoch: int, view: int) -> Tensor:
    """Draw all random numbers of one view of some images.

    Args:
        ids: image ids (B,), int64, on any device.
        seed: of the job or one derived from it.
        epoch: epoch.
        view: number of the view of this epoch.

    Returns:
        Draws (B, 11), float64 in [0, 1), on the device of the ids, which the other functions of this module read.
    """
    return uniforms(ids, _NUM_DRAWS, seed, epoch, view)


def mirrored(draws: Tensor) -> Tensor:
    """Which images (B,), bool, are mirrored left and right: half of them."""
    return draws[:, _FLIP] < 0.5


def shifts(draws: Tensor, pad: int) -> Tensor:
    """Pixels (B, 2), int64, in -pad..pad, by which the crop of a padded image lies lower and further right."""
    return (draws[:, (_TOP, _LEFT)] * (2 * pad + 1)).to(torch.int64) - pad


def parts(draws: Tensor) -> Tensor:
    """Share (B, 2), float64 in 0..1, of the height and of the width that the part of a square image has."""
    area = _MIN_AREA + (1.0 - _MIN_AREA) * draws[:, _AREA]
    root_ratio = torch.exp((2.0 * draws[:, _RATIO] - 1.0) * (_MAX_LOG_RATIO / 2.0))
    return torch.stack([(area.sqrt() * factor).clamp(max=1.0) for factor in (1.0 / root_ratio, root_ratio)], dim=1)


def offsets(draws: Tensor) -> Tensor:
    """Where the part of an image lies: shares (B, 2), float64, of the room that is left above it and left of it."""
    return draws[:, (_TOP, _LEFT)]


def boxes(draws: Tensor, sizes: Tensor) -> Tensor:
    """Part of each picture that becomes a view; whole pixels.

    The area is uniform in 8..100 % of the picture's, the logarithm of width over height uniform up to 4:3; a side that
    would be longer than the picture's is the picture's.

    Args:
        draws: from `choose`.
        sizes: height and width of each picture (B, 2), int64, pixels.

    Returns:
        Top, left, height and width (B, 4), int64, inside the picture.
    """
    area = (_MIN_AREA + (1.0 - _MIN_AREA) * draws[:, _AREA]) * sizes.prod(1)
    ratio = torch.exp((2.0 * draws[:, _RATIO] - 1.0) * _MAX_LOG_RATIO)
    sides = torch.stack([area / ratio, area * ratio], dim=1).sqrt().round().to(torch.int64)
    sides = torch.minimum(sides.clamp(min=1), sizes)
    corners = (draws[:, (_TOP, _LEFT)] * (sizes - sides + 1)).to(torch.int64)
    return torch.cat([corners, sides], dim=1)


def colours(draws: Tensor) -> Tensor:
    """Symmetric draws (B, 3), float32 in -1..1, of brightness, contrast and saturation."""
    return (2.0 * draws[:, (_BRIGHTNESS, _CONTRAST, _SATURATION)] - 1.0).to(torch.float32)


def light(draws: Tensor, num_colours: int = 3) -> Tensor:
    """Colour noise (B, 3), float64, along the principal components, of standard deviation 1 times each component's.

    For a single colour the result is what the noise does to grey (B, 1).
    """
    normal = torch.special.ndtri(draws[:, _LIGHTING : _LIGHTING + 3].clamp(min=2.0**-53))
    first, second, third = (normal[:, axis] * _PRINCIPAL_VALUES[axis] for axis in range(3))
    channels = [axes[0] * first + axes[1] * second + axes[2] * third for axes in _PRINCIPAL_AXES]
    if num_colours == 1:
        channels = [LUMA[0] * channels[0] + LUMA[1] * channels[1] + LUMA[2] * channels[2]]
    return torch.stack(channels, dim=1)
