"""Section of a job: the images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from ekgsearch.data import generated
from ekgsearch.data.datasets import DatasetName
from ekgsearch.fields import Count, Mark, Pixels, Positive, Section, Text, Threads, Width


@dataclass(frozen=True, slots=True)
class KnownImages:
    """What is known of a data set before it is opened.

    Attributes:
        classes: number of classes.
        train: training images.
        per_class: training images of the smallest class.
        size: side of the images in pixels where the job does not say.
        sizes: smallest and largest side that they can have.
    """

    classes: int
    train: int
    per_class: int
    size: int
    sizes: tuple[int, int]


KNOWN_IMAGES = {
    "digits": KnownImages(10, 1437, 139, 16, (8, 4096)),
    "cifar10": KnownImages(10, 50_000, 5000, 32, (32, 32)),
    "cifar100": KnownImages(100, 50_000, 500, 32, (32, 32)),
}
"""The data sets whose images are always the same; those of the others are counted when they are opened."""

_GENERATED_SIZES = (1, 4096)

PICTURE_SIZE = 224
ANY_CLASSES = 1000
"""Side in pixels and number of classes of pictures of which nothing is known, as ImageNet has them."""


class DataSection(Section):
    """The images."""

    name: DatasetName = Field("digits", description="data set")
    title: Annotated[Text | None, Mark.NO_RESULT] = Field(
        None,
        description="what tables and reports call the data set, such as imagenet: published results of this name are "
        "shown next to the run; null: data.name",
    )
    root: Annotated[Text | None, Mark.BY_CONTENT, Mark.PATH] = Field(
        None,
        description="folder of the data set; null: $EKGSEARCH_DATA, else the user's cache. $VARIABLES are expanded",
    )
    image_size: Pixels | None = Field(
        None,
        description="side of the square images in pixels; null: the data set's own (digits 16, generated 32, "
        "pictures 224)",
    )
    channels: Literal[1, 3, 4] | None = Field(
        None,
        description="channels of an image: digits 1 or 3, cifar 3, pictures are converted to 1 (grey), 3 (RGB) or 4 "
        "(RGBA), as those that are generated have them; DALI decodes those of 3; null: 3",
    )
    classes: Width | None = Field(None, description="generated: number of classes; null: 10")
    max_classes: Positive | None = Field(
        None,
        description="open only the images of the first so many classes, e.g. for a trial; the network keeps the "
        "outputs of all. null: all",
    )
    max_images_per_class: Positive | None = Field(
        None,
        description="open only the first so many training and test images of each class; of an image_folder no others "
        "are verified. null: all",
    )
    download: Annotated[bool, Mark.NO_RESULT] = Field(
        True, description="fetch a missing data set where the network allows"
    )
    max_bad_images: Annotated[Count, Mark.NO_RESULT] = Field(
        0, description="image_folder, parquet: damaged images that are left out before giving up"
    )
    train_images: Positive | None = Field(
        None,
        description="train on this many training images (the first of each class, evenly): pre-training, memory bank, "
        "fine-tuning, recalibration. The subsets of warm-up and search are chosen from all images, by their own "
        "images_per_class. null: all",
    )
    test_images: Positive | None = Field(
        None,
        description="evaluate on this many test images (the first of each class, evenly), wherever a test accuracy is "
        "measured; every table with one says how many. null: all",
    )
    loader: Literal["auto", "dali", "torch"] = Field(
        "auto", description="who decodes pictures for training; auto: DALI where it can run, the log says why not"
    )
    loader_threads: Annotated[Threads | None, Mark.NO_RESULT] = Field(
        None, description="pictures that one process decodes at once; null: one per core, at most 16"
    )
    max_damaged: Annotated[float, Mark.NO_RESULT] = Field(
        1e-4,
        ge=0,
        le=1,
        description="share of the training images that may turn out damaged later and be replaced by others of their "
        "class (rounded up); each process counts its own, again from every start. The search replaces none",
    )

    @property
    def known(self) -> KnownImages | None:
        """What is known of the data set before it is opened; None for image_folder and parquet."""
        found = KNOWN_IMAGES.get(self.name)
        if self.name == "generated":
            classes, per_class = self.classes or generated.DEFAULT_CLASSES, generated.TRAIN_PER_CLASS
            found = KnownImages(classes, classes * per_class, per_class, generated.DEFAULT_SIZE, _GENERATED_SIZES)
        if found is None:
            return None
        most = self.max_images_per_class or math.inf
        classes = min(self.max_classes or found.classes, found.classes)
        opened = min(found.train, classes * most)  # of uneven classes at most so many
        return replace(found, train=int(opened), per_class=int(min(found.per_class, most)))

    def contradictions(self) -> Iterator[str]:
        """What the fields of this section ask for and the data set cannot have; one line each."""
        if self.name in ("image_folder", "parquet") and self.root is None:
            yield f"data.root is null: data.name {self.name} needs the folder that holds train and val"
        if self.name != "generated" and self.classes is not None:
            yield f"data.classes = {self.classes}: {self.name} has its own number of classes; leave it out"
        known = self.known
        if known is None:
            return
        smallest, largest = known.sizes
        if self.image_size is not None and not smallest <= self.image_size <= largest:
            allowed = f"{smallest} pixels" if smallest == largest else f"{smallest} to {largest} pixels"
            yield f"data.image_size = {self.image_size}: the images of {self.name} have {allowed}; leave it out"
        if self.train_images is not None and self.train_images > known.train:
            yield f"data.train_images = {self.train_images}, but {self.name} has {known.train} training images"
