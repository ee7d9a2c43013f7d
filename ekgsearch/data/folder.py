"""Pictures in class folders, decoded when they are read."""

from dataclasses import dataclass
from pathlib import Path

from ekgsearch.data.decode import MODES
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import Dataset
from ekgsearch.data.index import ImageIndex, IndexedImage, check_same_classes, class_folders, index_images
from ekgsearch.data.index_file import load_indexes
from ekgsearch.data.limit import ALL, Limit
from ekgsearch.errors import DataError, MissingDataError, StorageError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""The usual ImageNet statistics, pixel units 0..255."""

_HALF_RANGE = 127.5
"""Mean and deviation that bring alpha, most of which is 255, to -1..1."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Files below a split folder, of which an index is known."""

    index: ImageIndex

    def read(self, image: IndexedImage) -> bytes:
        """Read a file."""
        return (self.index.folder / image.path).read_bytes()

    def where(self, image: IndexedImage) -> str:
        """Name the file."""
        return str(self.index.folder / image.path)


def picture_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Usual means and deviations of grey (those of ImageNet, averaged), RGB or RGBA pictures, pixel units 0..255.

    Raises:
        DataError: pictures are not converted to so many channels.
    """
    if channels not in MODES:
        raise DataError(f"data.channels: pictures have 1 (grey), 3 (RGB) or 4 (RGBA) channels, found {channels}")
    if channels == 1:
        return (round(sum(IMAGENET_MEAN) / 3, 3),), (round(sum(IMAGENET_STD) / 3, 3),)
    alpha = (_HALF_RANGE,) * (channels - 3)
    return IMAGENET_MEAN + alpha, IMAGENET_STD + alpha


def folder_images(index: ImageIndex, image_size: int, *, num_threads: int, channels: int = 3) -> EncodedImages:
    """Read the pictures of a split folder by its index; see `EncodedImages`."""
    return EncodedImages(index.images, FolderSource(index), image_size, num_threads=num_threads, channels=channels)


def open_image_folder(
    root: Path,
    image_size: int,
    *,
    channels: int = 3,
    max_bad: int = 0,
    num_threads: int,
    index_file: Path | None = None,
    limit: Limit = ALL,
) -> Dataset:
    """Open pictures laid out as root/{train, val or test}/<class>/<file>.

    Args:
        root: the folder.
        image_size: height and width that pictures are brought to, pixels.
        channels: 1, 3 or 4, what pictures are converted to: grey, RGB or RGBA.
        max_bad: unusable files that are left out of the training split with a warning; the test split allows none.
        num_threads: pictures decoded at once.
        index_file: what `save_indexes` wrote of both splits; the pictures that it lists are opened, unverified, in
            place of those that the folder has now. None verifies the folder.
        limit: which pictures of either split are verified and opened; of an index file it is taken for granted.

    Raises:
        MissingDataError: there is no folder of a split.
        DataError: folders differ between the splits, or too many files are unusable.
        StorageError: the index file is missing, damaged or of another folder.
    """
    mean, std = picture_statistics(channels)
    folders = _split_folders(root)
    if index_file is None:
        check_same_classes(*folders)
        indexes = tuple(index_images(folder, num_threads=num_threads, limit=limit) for folder in folders)
        for index, allowed in zip(indexes, (max_bad, 0), strict=True):
            index.check_bad(allowed, limit)
    else:
        indexes = load_indexes(index_file)
        if tuple(index.folder for index in indexes) != folders:
            listed = " and ".join(str(index.folder) for index in indexes) or "no folder"
            raise StorageError(f"{index_file} lists the pictures of {listed}, expected those of {root}")
    train, test = (folder_images(index, image_size, num_threads=num_threads, channels=channels) for index in indexes)
    # An index names the classes of its pictures alone, and those of a part of the classes are not all.
    names = class_folders(folders[0]) if limit.classes is not None else indexes[0].class_names
    return Dataset("image_folder", train, test, len(names), train.image_shape, mean, std, tuple(names))


def indexes_of(dataset: Dataset) -> tuple[ImageIndex, ...]:
    """The indexes of the training and the test split of an image folder."""
    sources = [images.source for images in (dataset.train, dataset.test) if isinstance(images, EncodedImages)]
    return tuple(source.index for source in sources if isinstance(source, FolderSource))


def _split_folders(root: Path) -> tuple[Path, Path]:
    """Find the folders of the training and the test split."""
    train = root / "train"
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    for folder in (train, test):
        if not folder.is_dir():
            raise MissingDataError(f"expected folders train and val (or test) in {root}, found no {folder.name}")
    return train, test
