"""Changing the colours of an image as one affine map of its pixels, which is several times faster than step by step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ekgsearch.data import choices
from ekgsearch.data.choices import LUMA
from ekgsearch.data.views import Augmentation, Normalisation, num_colours


@dataclass(frozen=True, slots=True)
class ColourMap:
    """Pixel x, in 0..255, of an image with channel means m becomes `matrix` x + `mean_matrix` m + `offset`.

    Attributes:
        matrix: (N, C, C), float32.
        mean_matrix: (N, C, C), float32.
        offset: (N, C), float32, in 0..255.
    """

    matrix: Tensor
    mean_matrix: Tensor
    offset: Tensor

    @classmethod
    def chosen(cls, draws: Tensor, augmentation: Augmentation, channels: int = 3) -> "ColourMap":
        """Compose contrast, brightness, saturation and light, in this order, as `data.views.recoloured` does.

        Args:
            draws: of N views, from `choices.choose`.
            augmentation: how much changes.
            channels: of the images.

        Raises:
            DataError: images of so many channels have no known colours.
        """
        num = num_colours(channels)
        brightness, contrast, saturation = choices.colours(draws).double().unbind(1)
        contrast = 1.0 + augmentation.contrast * contrast
        saturation = 1.0 + augmentation.saturation * saturation
        luma = torch.tensor(LUMA if num == 3 else (1.0,), dtype=torch.float64, device=draws.device).expand(num, num)
        eye = torch.eye(num, dtype=torch.float64, device=draws.device)
        saturate = saturation[:, None, None] * eye + (1.0 - saturation)[:, None, None] * luma
        light = augmentation.lighting * choices.light(draws, num)
        offset = 255.0 * (augmentation.brightness * brightness[:, None] * saturate.sum(2) + light)
        matrix = contrast[:, None, None] * saturate
        mean_matrix = (1.0 - contrast)[:, None, None] * saturate
        if alpha := channels - num:
            offset, mean_matrix = F.pad(offset, (0, alpha)), F.pad(mean_matrix, (0, alpha, 0, alpha))
            matrix = F.pad(matrix, (0, alpha, 0, alpha))
            matrix[:, num:, num:] = torch.eye(alpha, dtype=torch.float64, device=draws.device)
        return cls(matrix.float(), mean_matrix.float(), offset.float())

    def __getitem__(self, part: slice) -> "ColourMap":
        """Take the maps of some images."""
        return ColourMap(self.matrix[part], self.mean_matrix[part], self.offset[part])

    def to(self, device: torch.device) -> "ColourMap":
        """Copy to a device."""
        return ColourMap(self.matrix.to(device), self.mean_matrix.to(device), self.offset.to(device))

    def apply(self, pixels: Tensor, out: Tensor) -> None:
        """Change colours.

        Args:
            pixels: N images (N, C, P) of P pixels each, float32, in 0..255.
            out: room for the result (N, C, P), float32, which is cut to 0..255.
        """
        bias = self.mean_matrix @ pixels.mean(2, keepdim=True) + self.offset[:, :, None]
        torch.baddbmm(bias, self.matrix, pixels, out=out)
        out.clamp_(0.0, 255.0)


def normalise_(pixels: Tensor, normalisation: Normalisation) -> None:
    """Turn pixels (N, C, P), float32, in 0..255, into network input in place; the arithmetic is `Normalisation`'s."""
    mean, std = torch.tensor([normalisation.mean, normalisation.std], device=pixels.device)[:, :, None]
    pixels.sub_(mean).div_(std)
