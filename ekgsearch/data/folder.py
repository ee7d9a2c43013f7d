"""Pictures in class folders, decoded when they are read."""

from dataclasses import dataclass
from pathlib import Path

from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.images import Dataset
from ekgsearch.data.index import ImageIndex, IndexedImage, check_same_classes, index_images
from ekgsearch.errors import DataError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
"""The usual ImageNet statistics, pixel units 0..255."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Files below a split folder."""

    folder: Path

    def read(self, image: IndexedImage) -> bytes:
        """Read a file."""
        return (self.folder / image.path).read_bytes()

    def where(self, image: IndexedImage) -> str:
        """Name the file."""
        return str(self.folder / image.path)


def folder_images(index: ImageIndex, image_size: int, *, num_threads: int) -> EncodedImages:
    """Read the pictures of a split folder by its index; see `EncodedImages`."""
    return EncodedImages(index.images, FolderSource(index.folder), image_size, num_threads=num_threads)


def open_image_folder(root: Path, image_size: int, *, max_bad: int = 0, num_threads: int) -> Dataset:
    """Open pictures laid out as root/{train, val or test}/<class>/<file>.

    Args:
        root: the folder.
        image_size: height and width that pictures are brought to, pixels.
        max_bad: unusable files that are left out of the training split with a warning; the test split allows none.
        num_threads: pictures decoded at once.

    Raises:
        DataError: folders are missing or differ between the splits, or too many files are unusable.
    """
    train_folder = root / "train"
    test_folder = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    for folder in (train_folder, test_folder):
        if not folder.is_dir():
            raise DataError(f"expected folders train and val (or test) in {root}, found no {folder.name}")
    check_same_classes(train_folder, test_folder)
    train, test = (index_images(folder, num_threads=num_threads) for folder in (train_folder, test_folder))
    train.check_bad(max_bad)
    test.check_bad(0)
    return Dataset(
        "image_folder",
        folder_images(train, image_size, num_threads=num_threads),
        folder_images(test, image_size, num_threads=num_threads),
        len(train.class_names),
        (3, image_size, image_size),
        IMAGENET_MEAN,
        IMAGENET_STD,
    )
