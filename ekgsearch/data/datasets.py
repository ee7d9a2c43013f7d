"""Every data set that can be opened by name."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from ekgsearch.data.cifar import open_cifar
from ekgsearch.data.digits import DEFAULT_SIZE as DIGITS_SIZE
from ekgsearch.data.digits import open_digits
from ekgsearch.data.folder import open_image_folder
from ekgsearch.data.generated import DEFAULT_CLASSES, open_generated
from ekgsearch.data.generated import DEFAULT_SIZE as GENERATED_SIZE
from ekgsearch.data.images import ArrayImages, Dataset, ImageSet
from ekgsearch.data.index import class_folders
from ekgsearch.data.limit import ALL, Limit
from ekgsearch.data.parquet import count_classes, open_parquet
from ekgsearch.errors import DataError

__all__ = ["NAMES", "ArrayImages", "Dataset", "DatasetName", "ImageSet", "describe_dataset", "open_dataset"]

DatasetName = Literal["digits", "cifar10", "cifar100", "image_folder", "parquet", "generated"]
"""Names that `open_dataset` knows."""

NAMES: tuple[DatasetName, ...] = ("digits", "cifar10", "cifar100", "image_folder", "parquet", "generated")
"""The same names, in the order in which errors list them."""

_PICTURE_SIZE = 224


def open_dataset(
    name: str,
    root: Path | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    download: bool = True,
    limit: Limit = ALL,
    max_bad: int = 0,
    num_threads: int | None = None,
    index_file: Path | None = None,
) -> Dataset:
    """Open a data set; nothing is ever written into its folder, except a download.

    Args:
        name: digits (comes with scikit-learn), cifar10, cifar100, image_folder (root/{train,val}/<class>/*.jpg),
            parquet (root/{train,val}*.parquet with columns image and label, see `open_parquet`) or generated (made
            here, see `open_generated`).
        root: folder of the data; digits and generated need none, for CIFAR None means a folder in the user's cache.
        image_size: height and width in pixels; None means 16 for digits, 32 for CIFAR (the only choice there) and
            generated, 224 for image_folder and parquet.
        channels: channels of an image, None means 3: digits come in 1 or 3, CIFAR in 3, pictures of image_folder and
            parquet are converted to 1 (grey), 3 (RGB) or 4 (RGBA).
        classes: number of classes of generated; None means 10. The others have their own.
        download: whether CIFAR may be fetched when it is not there.
        limit: which images of the training and of the test set are kept; the number of classes stays. Of an
            image_folder the others are not verified either.
        max_bad: unusable pictures that are left out of the training set of image_folder and parquet; their test sets
            allow none.
        num_threads: pictures of image_folder and parquet decoded at once; None means one per core, at most 16.
        index_file: of image_folder alone, the file that says which pictures to open without verifying the folder; see
            `open_image_folder`.

    Raises:
        MissingDataError: the data is not there.
        DataError: an unknown name, incomplete or damaged data.
        StorageError: the index file is missing, damaged or of another folder.
    """
    depth = 3 if channels is None else channels
    if name == "digits":
        dataset = open_digits(image_size, channels=depth)
    elif name in ("cifar10", "cifar100"):
        _check_cifar(name, image_size, depth)
        dataset = open_cifar(name, root, download=download)
    elif name == "generated":
        dataset = open_generated(classes, image_size, channels=depth, limit=limit)
    elif name in ("image_folder", "parquet"):
        if root is None:
            raise DataError(f"{name}: expected the folder that holds train and val, found none; name it in the job")
        size = _PICTURE_SIZE if image_size is None else image_size
        threads = min(16, os.cpu_count() or 1) if num_threads is None else num_threads
        if name == "image_folder":
            dataset = open_image_folder(
                root,
                size,
                channels=depth,
                max_bad=max_bad,
                num_threads=threads,
                index_file=index_file,
                limit=limit,
            )
        else:
            dataset = open_parquet(root, size, channels=depth, max_bad=max_bad, num_threads=threads)
    else:
        raise DataError(f"data set must be one of {', '.join(NAMES)}; found '{name}'")
    return _limited(dataset, limit)


def describe_dataset(
    name: str,
    root: Path | None = None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
) -> tuple[int, tuple[int, int, int]]:
    """Say what can be said of a data set without decoding a picture.

    Args:
        name: see `open_dataset`.
        root: folder of the data; digits and CIFAR are not looked at.
        image_size: height and width in pixels; None means the data set's own.
        channels: channels of an image; None means 3.
        classes: number of classes of generated; None means 10.

    Returns:
        Number of classes, and the shape (channels, height, width) of an image.

    Raises:
        DataError: an unknown name, or the folder is missing or does not tell its classes.
    """
    own = {"digits": DIGITS_SIZE, "cifar10": 32, "cifar100": 32, "generated": GENERATED_SIZE}
    size = image_size or own.get(name, _PICTURE_SIZE)
    depth = 3 if channels is None else channels
    shape = (depth, size, size)
    match name:
        case "digits":
            return 10, shape
        case "generated":
            return classes or DEFAULT_CLASSES, shape
        case "cifar10" | "cifar100":
            _check_cifar(name, image_size, depth)
            return int(name.removeprefix("cifar")), shape
        case "image_folder" if root is not None:
            return len(class_folders(root / "train")), shape
        case "parquet" if root is not None:
            return count_classes(root), shape
        case "image_folder" | "parquet":
            raise DataError(f"{name}: expected the folder that holds train and val, found none; name it in the job")
        case _:
            raise DataError(f"data set must be one of {', '.join(NAMES)}; found '{name}'")


def _check_cifar(name: str, image_size: int | None, channels: int) -> None:
    if image_size not in (None, 32):
        raise DataError(f"{name}: images are 32x32 pixels, found image_size {image_size}; leave it out")
    if channels != 3:
        raise DataError(f"{name}: images have 3 channels, found data.channels {channels}; leave it out")


def _limited(dataset: Dataset, limit: Limit) -> Dataset:
    if limit == ALL:
        return dataset
    train, test = (images.take(limit.ids(images.labels)) for images in (dataset.train, dataset.test))
    return dataclasses.replace(dataset, train=train, test=test)
