"""From a decoded picture to its views: crop, mirror, colour, normalise."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ekgsearch.data import choices
from ekgsearch.data.batching import LoaderSettings
from ekgsearch.data.colours import ColourMap, normalise_
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.errors import DataError


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What is to be done for each view of some pictures, all of it chosen beforehand.

    Attributes:
        boxes: top, left, height and width (B, V, 4), int64, pixels, of the part of the picture.
        mirrored: (B, V), bool.
        colours: maps of B times V views, or None where colours stay.
    """

    boxes: Tensor
    mirrored: Tensor
    colours: ColourMap | None


class PictureViews:
    """Makes the views of decoded pictures."""

    def __init__(self, images: EncodedImages, settings: LoaderSettings) -> None:
        """Prepare.

        Args:
            images: the pictures, for their sizes.
            settings: seed, number of views, augmentation and normalisation.

        Raises:
            DataError: torchvision is not installed.
        """
        try:
            from torchvision.transforms.v2.functional import resized_crop
        except ImportError as error:
            raise DataError(f"views of pictures need torchvision, which cannot be imported: {error}") from error
        self._resized_crop = resized_crop
        self._settings = settings
        self._shape = images.image_shape
        self._sizes = torch.tensor([[image.height, image.width] for image in images.images])

    def empty(self, count: int) -> Tensor:
        """Room for the views (count, V, C, size, size), float32, of some pictures."""
        shape = (count, self._settings.views, *self._shape)
        # numpy asks for huge pages where torch does not: touching so much new memory is five times faster.
        return torch.from_numpy(np.empty(shape, np.float32))

    def plan(self, ids: Tensor, epoch: int) -> ViewPlan:
        """Choose what is done for each view of pictures with ids (B,), int64."""
        settings, count = self._settings, len(ids)
        numbers = range(settings.views)
        each = torch.stack([choices.choose(ids, seed=settings.seed, epoch=epoch, view=view) for view in numbers], dim=1)
        draws = each.flatten(0, 1)
        boxes = choices.boxes(draws, self._sizes[ids].repeat_interleave(settings.views, dim=0))
        mirrored = choices.mirrored(draws) & settings.augmentation.flip
        changes = settings.augmentation.changes_colour
        colours = ColourMap.chosen(draws, settings.augmentation, self._shape[0]) if changes else None
        return ViewPlan(boxes.view(count, settings.views, 4), mirrored.view(count, settings.views), colours)

    def render(self, picture: Tensor, plan: ViewPlan, position: int, out: Tensor) -> None:
        """Make the views of one picture.

        Args:
            picture: pixels (H, W, C), uint8.
            plan: of some pictures.
            position: which of them this is.
            out: room for the views (V, C, size, size).
        """
        count, side = self._settings.views, self._shape[1]
        whole = picture.permute(2, 0, 1)
        pixels = torch.empty(count, *self._shape)
        for view, (box, mirrored) in enumerate(
            zip(plan.boxes[position].tolist(), plan.mirrored[position].tolist(), strict=True)
        ):
            crop = self._resized_crop(whole, *box, [side, side])
            pixels[view].copy_(crop.flip(2) if mirrored else crop)
        part = slice(position * count, (position + 1) * count)
        self._recolour(pixels, None if plan.colours is None else plan.colours[part], out)

    def finish(self, crops: Tensor, plan: ViewPlan) -> Tensor:
        """Mirror, recolour and normalise all views of some pictures at once.

        Args:
            crops: parts of the pictures (B, V, C, size, size), uint8, on any device.
            plan: of these pictures.

        Returns:
            Views (B, V, C, size, size), float32, on the device of the crops.
        """
        mirrored = plan.mirrored.to(crops.device)[:, :, None, None, None]
        pixels = torch.where(mirrored, crops.flip(4), crops).float().flatten(0, 1)
        out = torch.empty_like(pixels)
        self._recolour(pixels, None if plan.colours is None else plan.colours.to(crops.device), out)
        return out.view(crops.shape)

    def _recolour(self, pixels: Tensor, colours: ColourMap | None, out: Tensor) -> None:
        """From pixels (N, C, size, size), float32, to network input in `out`, of the same shape."""
        if colours is None:
            out.copy_(pixels)
        else:
            colours.apply(pixels.flatten(2), out.flatten(2))
        normalise_(out.flatten(2), self._settings.normalisation)
