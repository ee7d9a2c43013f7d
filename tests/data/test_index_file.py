"""The index of an image folder as a file: what comes back, what is refused, and what is met only at reading."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data.loading import encoded, photograph, picture_folder

from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.folder import indexes_of
from ekgsearch.data.images import Dataset
from ekgsearch.data.index_file import load_indexes, save_indexes
from ekgsearch.errors import DataError, StorageError
from ekgsearch.rows.study import StudyRow
from ekgsearch.storage.tables import write_table

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve training pictures, one of which is empty, and two of the test set."""
    root = picture_folder(tmp_path / "pictures")
    (root / "train" / "cat" / "03.jpg").write_bytes(b"")
    return root


def opened(root: Path, index_file: Path | None = None) -> Dataset:
    return open_dataset("image_folder", root, image_size=16, max_bad=1, num_threads=1, index_file=index_file)


@pytest.fixture
def saved(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "index.parquet"
    save_indexes(path, indexes_of(opened(root)))
    return path


def test_an_index_comes_back_as_it_was(root: Path, saved: Path) -> None:
    dataset = opened(root)
    train, test = load_indexes(saved)
    assert (train, test) == indexes_of(dataset)
    assert [file.path for file in train.bad] == ["cat/03.jpg"]
    again = opened(root, saved)
    assert again.content_hash == dataset.content_hash
    assert torch.equal(again.train.read(torch.arange(11)), dataset.train.read(torch.arange(11)))


def test_by_an_index_the_folder_is_not_verified_again(root: Path, saved: Path) -> None:
    before = opened(root)
    (root / "train" / "cat" / "00.jpg").unlink()
    (root / "train" / "dog" / "05.jpg").write_bytes(b"text")
    (root / "train" / "dog" / "06.jpg").write_bytes(encoded(photograph(9)))
    dataset = opened(root, saved)
    assert dataset.content_hash == before.content_hash
    assert len(dataset.train.read(torch.arange(1, 10))) == 9
    for image_id, name in ((0, "cat/00"), (10, "dog/05")):
        with pytest.raises(DataError, match=rf"{name}\.jpg (has changed|was verified)"):
            dataset.train.read(torch.tensor([image_id]))


def _of_another_kind(path: Path) -> None:
    write_table(path, [], StudyRow)


def _shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "does not exist"),
        (_shortened, "parquet|damaged|checksum"),
        (_of_another_kind, "expected those of an index of pictures"),
    ],
)
def test_an_index_file_that_cannot_be_used_is_refused(
    root: Path, saved: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(saved)
    with pytest.raises(StorageError, match=rf"index\.parquet .*({message})"):
        opened(root, saved)


def test_the_index_of_another_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    other = picture_folder(tmp_path / "other")
    with pytest.raises(
        StorageError, match=r"lists the pictures of .*/pictures/train and .*, expected those of .*/other"
    ):
        opened(other, saved)
    with pytest.raises(DataError, match="expected folders train and val"):
        opened(tmp_path / "nowhere", saved)
