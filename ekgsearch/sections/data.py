"""Sections of a job: the network and the images."""

from typing import Literal

from pydantic import Field

from ekgsearch.sections.base import Positive, Section


class NetSection(Section):
    """The network to shrink."""

    name: str = Field("resnet56", description="architecture, e.g. resnet20, resnet56, resnet50, vgg16, mobilenet_v2")
    weights: str | None = Field(
        None, description="safetensors file of trained weights; null trains the network first. $VARIABLES are expanded"
    )
    shortcut: Literal["option_a", "projection"] | None = Field(
        None, description="shortcut of CIFAR ResNets; null: as the weights' sidecar says, else projection"
    )
    padding: Literal["torch", "tf_same"] | None = Field(
        None,
        description="padding of strided convolutions; null: as the weights' sidecar says, else tf_same with all quirks "
        "of search.quirks, else torch",
    )


class DataSection(Section):
    """The images."""

    name: Literal["digits", "cifar10", "cifar100", "image_folder", "parquet"] = Field("digits", description="data set")
    root: str | None = Field(
        None,
        description="folder of the data set; null: $EKGSEARCH_DATA, else the user's cache. $VARIABLES are expanded",
    )
    image_size: Positive | None = Field(
        None, description="side of the square images in pixels; null: the data set's own (digits 16, pictures 224)"
    )
    download: bool = Field(True, description="fetch a missing data set where the network allows")
    max_bad_images: int = Field(
        0, ge=0, description="image_folder, parquet: damaged images that are left out before giving up"
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
    loader_threads: Positive | None = Field(
        None, description="pictures that one process decodes at once; null: one per core, at most 16"
    )
    max_damaged: float = Field(
        1e-4,
        ge=0,
        le=1,
        description="share of the training images that may turn out damaged later and be replaced by others of their "
        "class (rounded up); each process counts its own, anew from every start. The search replaces none",
    )
