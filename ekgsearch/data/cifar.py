"""CIFAR-10 and CIFAR-100 from parquet files, from their published batches, or from the network."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ekgsearch.data.cache import cache_folder, cached_images, source_key
from ekgsearch.data.class_names import CIFAR10, CIFAR100
from ekgsearch.data.decode import open_picture
from ekgsearch.data.images import ArrayImages, Dataset
from ekgsearch.data.shards import check_complete, find_shards, picture_columns, stored_bytes, unreadable
from ekgsearch.data.unpickle import read_arrays
from ekgsearch.errors import DataError, MissingDataError

logger = logging.getLogger(__name__)

_SIZE = 32
_SPLITS = ("train", "test")
_BATCHES_FOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_BATCHES = {
    "cifar10": {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
_CLASS_NAMES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_MEAN = {"cifar10": (125.3, 123.0, 113.9), "cifar100": (129.3, 124.1, 112.4)}
_STD = {"cifar10": (63.0, 62.1, 66.7), "cifar100": (68.2, 65.4, 70.4)}


def open_cifar(name: str, root: Path | None, *, download: bool = True) -> Dataset:
    """Open CIFAR-10 or CIFAR-100.

    Looked for, in this order: parquet files `train-*.parquet` and `test-*.parquet` (columns `image`, a 32x32 PNG, and
    `label`) in the folder or its child of this name; the published Python batches in the folder or below. Only then
    they are downloaded, through torchvision, into the folder. Decoded pixels are cached (`ekgsearch.data.cache`).

    Args:
        name: cifar10 or cifar100.
        root: folder; None means a folder in the user's cache.
        download: whether the network may be used.

    Raises:
        MissingDataError: the data is nowhere and cannot be fetched.
        DataError: it is incomplete or damaged.
    """
    if root is None:
        root = cache_folder() / "datasets"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{name}: {root} cannot be made ({error.strerror}); name a folder in the job") from error
    elif not root.is_dir():
        raise MissingDataError(
            f"{name}: expected a folder of data at {root}, found none; "
            "set data.root in the job, or EKGSEARCH_DATA, to the folder that holds the data set"
        )
    images = _find(name, root)
    if images is None and download:
        _download(name, root)
        images = _find(name, root)
    if images is None:
        raise MissingDataError(
            f"{name}: neither train-*.parquet and test-*.parquet in {root} or {root / name} nor the batches in "
            f"{root / _BATCHES_FOLDER[name]} were found; put the data there, or allow the download"
        )
    train, test = images
    for split, members in zip(_SPLITS, images, strict=True):
        _check_labels(f"{name} {split}", members, len(_CLASS_NAMES[name]))
    names = _CLASS_NAMES[name]
    return Dataset(name, train, test, len(names), (3, _SIZE, _SIZE), _MEAN[name], _STD[name], names)


def _find(name: str, root: Path) -> tuple[ArrayImages, ArrayImages] | None:
    for folder in (root, root / name):
        shards = {split: find_shards(folder, f"{split}-*.parquet") for split in _SPLITS}
        if all(shards.values()):
            train, test = (_open_shards(shards[split]) for split in _SPLITS)
            return train, test
    for folder in (root, root / _BATCHES_FOLDER[name], root / name / _BATCHES_FOLDER[name]):
        batches = _BATCHES[name]
        if all((folder / batches[split][0]).is_file() for split in _SPLITS):
            train, test = (_open_batches([folder / file for file in batches[split]]) for split in _SPLITS)
            return train, test
    return None


def _open_shards(paths: Sequence[Path]) -> ArrayImages:
    check_complete(paths)

    def decode() -> tuple[np.ndarray, np.ndarray]:
        logger.info("decoding %d parquet files of %s", len(paths), paths[0].parent)
        parts = [_decode_shard(path) for path in paths]
        return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])

    return cached_images(source_key("cifar-parquet", paths), decode)


def _decode_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    columns = picture_columns(path)
    try:
        table = pq.read_table(path, columns=list(columns))
        labels = table.column(columns[1]).cast(pa.int64()).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    pictures = table.column(columns[0]).to_pylist()
    if None in labels:
        raise DataError(f"{path}, row {labels.index(None)}: expected a whole number in column {columns[1]}, found null")
    images = np.empty((len(pictures), _SIZE, _SIZE, 3), np.uint8)
    for row, picture in enumerate(pictures):
        try:
            image = open_picture(stored_bytes(picture))
            if image.size != (_SIZE, _SIZE):
                raise DataError(f"it has {image.width}x{image.height} pixels")
        except DataError as error:
            raise DataError(
                f"{path}, row {row}: expected a {_SIZE}x{_SIZE} picture, found one that is not: {error}"
            ) from error
        images[row] = np.asarray(image)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.array(labels, np.int64)


def _open_batches(paths: Sequence[Path]) -> ArrayImages:
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is missing; fetch the data set again")

    def decode() -> tuple[np.ndarray, np.ndarray]:
        parts = [_read_batch(path) for path in paths]
        return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])

    return cached_images(source_key("cifar-batches", paths), decode)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_arrays(path)
    images = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels", batch.get("fine_labels")) if isinstance(batch, dict) else None
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != 3 * _SIZE * _SIZE
        or not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise DataError(f"{path}: expected 'data' (N, 3072) of bytes and N 'labels'; fetch the data set again")
    return images.reshape(-1, 3, _SIZE, _SIZE), np.array(labels, np.int64)


def _check_labels(where: str, images: ArrayImages, num_classes: int) -> None:
    if not len(images):
        raise DataError(f"{where}: expected images, found none")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if lowest < 0 or highest >= num_classes:
        raise DataError(f"{where}: labels must be 0..{num_classes - 1}, found {lowest}..{highest}")


def _download(name: str, root: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    source = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    logger.info("downloading %s from %s into %s", name, source.url, root)
    try:
        download_and_extract_archive(source.url, str(root), filename=source.filename, md5=source.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise MissingDataError(
            f"{name} is not in {root} and could not be downloaded from {source.url}: {error}; "
            f"put parquet files or {_BATCHES_FOLDER[name]} there"
        ) from error
