"""The augmentation that a job leaves open is the published one for its kind of images."""

import pytest

from ekgsearch.data.views import Augmentation
from ekgsearch.experiment import Job
from ekgsearch.pipeline.augmenting import finetune_augmentation, pretrain_augmentation

COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}


def job(data: dict[str, object], **sections: object) -> Job:
    return Job.model_validate({"output": "out", "data": data, "search": {"reduction": 0.5}, **sections})


@pytest.mark.parametrize("name", ["image_folder", "parquet"])
def test_pictures_get_resized_crops_and_lighting(name: str) -> None:
    asked = job({"name": name, "root": "pictures"})
    assert finetune_augmentation(asked) == Augmentation(crop="resized", lighting=0.1, **COLOURS)
    assert pretrain_augmentation(asked) == Augmentation(crop="resized")


def test_small_images_get_shifts_of_the_padded_image() -> None:
    asked = job({"name": "cifar10"})
    assert finetune_augmentation(asked) == Augmentation(pad=4, **COLOURS)
    assert pretrain_augmentation(asked) == Augmentation(pad=4)


def test_a_job_can_say_otherwise() -> None:
    asked = job(
        {"name": "cifar10"},
        finetune={"crop": "resized", "lighting": 0.3, "flip": False},
        pretrain={"crop": "pad", "pad": 2},
    )
    assert finetune_augmentation(asked) == Augmentation(crop="resized", lighting=0.3, flip=False, **COLOURS)
    assert pretrain_augmentation(asked) == Augmentation(pad=2)
