"""Which augmentation the views of a training phase get, from what a job says and leaves open."""

from typing import Literal

from ekgsearch.data.views import Augmentation, Crop
from ekgsearch.experiment import Job

_LIGHTING = 0.1
"""Standard deviation of the noise along ImageNet's principal colours (Krizhevsky et al., 2012, sec. 4.1)."""


def finetune_augmentation(job: Job) -> Augmentation:
    """Views of the fine-tuning: colours always, for pictures of any size a resized crop and lighting."""
    section = job.finetune
    crop = _crop(job, section.crop)
    published = _LIGHTING if crop == "resized" else 0.0
    return Augmentation(
        pad=section.pad,
        flip=section.flip,
        brightness=section.brightness,
        contrast=section.contrast,
        saturation=section.saturation,
        lighting=published if section.lighting is None else section.lighting,
        crop=crop,
    )


def pretrain_augmentation(job: Job) -> Augmentation:
    """Views of the pre-training: crop and flip."""
    section = job.pretrain
    return Augmentation(pad=section.pad, flip=section.flip, crop=_crop(job, section.crop))


def _crop(job: Job, asked: Literal["auto", "pad", "resized"]) -> Crop:
    if asked != "auto":
        return asked
    return "resized" if job.data.name in ("image_folder", "parquet") else "pad"
