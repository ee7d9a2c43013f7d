import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ekgsearch.data import index
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.decode import MAX_PIXELS, open_picture, square_pixels
from ekgsearch.data.folder import indexes_of
from ekgsearch.data.index import index_images
from ekgsearch.data.index_file import save_indexes
from ekgsearch.data.limit import Limit
from ekgsearch.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


def picture(seed: int = 0, size: tuple[int, int] = (20, 30), mode: str = "RGB") -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training and two test pictures each."""
    for split, num in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(num):
                (folder / f"{number}.jpg").write_bytes(encoded(picture(10 * label + number)))
    return tmp_path / "pictures"


def test_pictures_are_read_by_class_in_alphabetical_order(root: Path) -> None:
    dataset = open_dataset("image_folder", root, image_size=16)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (6, 4, 2)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = dataset.train.read(torch.tensor([4, 0]))
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (2, 3, 16, 16))
    expected = square_pixels(open_picture((root / "train" / "dog" / "1.jpg").read_bytes()), 16)
    assert np.array_equal(pixels[0].numpy(), expected)


def test_a_test_split_may_be_called_test(root: Path) -> None:
    before = open_dataset("image_folder", root, image_size=16)
    (root / "val").rename(root / "test")
    assert open_dataset("image_folder", root, image_size=16).content_hash == before.content_hash


@pytest.mark.parametrize("name", [b"cat/\xff.jpg", b"\xff/0.jpg"])
def test_a_name_that_is_not_utf_8_is_refused(name: bytes, root: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(root / "train") + b"/" + name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(picture()))
    with pytest.raises(DataError, match=r"train(/cat)?: expected names in UTF-8, found b'\\xff(\.jpg)?'; rename them"):
        open_dataset("image_folder", root, image_size=16)


def test_a_picture_may_be_a_link_to_a_name_that_is_not_utf_8(root: Path, tmp_path: Path) -> None:
    path = root / "train" / "cat" / "0.jpg"
    path.symlink_to(path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")))
    assert len(open_dataset("image_folder", root, image_size=16).train) == 6


def _bomb() -> bytes:
    data = bytearray(encoded(picture(), "PNG"))
    data[16:24] = (MAX_PIXELS // 10).to_bytes(4, "big") + (20).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, I am a picture", "expected JPEG or PNG"),
    "gif": (encoded(picture(), "GIF"), "found GIF"),
    "webp": (encoded(picture(), "WEBP"), "found WebP"),
    "bmp": (encoded(picture(), "BMP"), "found BMP"),
    "truncated jpeg": (encoded(picture(size=(200, 200)))[:3000], "cannot be decoded"),
    "truncated png": (encoded(picture(size=(200, 200)), "PNG")[:3000], "cannot be decoded"),
    "jpeg header only": (encoded(picture())[:12], "cannot be decoded"),
    "flipped png": (encoded(picture(), "PNG")[:60] + b"\0\0\0\0" + encoded(picture(), "PNG")[64:], "cannot be decoded"),
    "bomb": (_bomb(), "pixels|checksum|cannot be decoded"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_its_reason(root: Path, kind: str) -> None:
    data, reason = BAD[kind]
    (root / "train" / "cat" / "1x.jpg").write_bytes(data)
    with pytest.raises(DataError, match=rf"cat/1x\.jpg: .*({reason})"):
        open_dataset("image_folder", root, image_size=16)


def test_allowed_bad_files_are_left_out_of_training_but_never_of_the_test_set(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = open_dataset("image_folder", root, image_size=16)
    for name in ("cat/a.jpg", "dog/b.jpg"):
        (root / "train" / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 files are no usable pictures.*at most 1"):
        open_dataset("image_folder", root, image_size=16, max_bad=1)
    dataset = open_dataset("image_folder", root, image_size=16, max_bad=2)
    assert "2 files are no usable pictures" in caplog.text
    assert dataset.content_hash == good.content_hash
    (root / "val" / "dog" / "c.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"dog/c\.jpg: the file is empty"):
        open_dataset("image_folder", root, image_size=16, max_bad=5)


@pytest.mark.parametrize("name", ["ape", "zebra"])
def test_a_class_without_a_usable_training_picture_is_refused(root: Path, name: str) -> None:
    for split, data in (("train", b""), ("val", encoded(picture()))):
        (root / split / name).mkdir()
        (root / split / name / "0.jpg").write_bytes(data)
    with pytest.raises(
        DataError, match=rf"{name}/0\.jpg: the file is empty.*no usable one is left of the class {name};"
    ):
        open_dataset("image_folder", root, image_size=16, max_bad=5)


def test_what_is_no_file_counts_as_a_bad_one(root: Path) -> None:
    (root / "train" / "cat" / "link.jpg").symlink_to(root / "nowhere.jpg")
    (root / "train" / "cat" / "loop.jpg").symlink_to(root / "train" / "cat" / "loop.jpg")
    os.mkfifo(root / "train" / "dog" / "pipe.jpg")
    expected = (
        "cat/link.jpg: it is a link to a file that is not there; cat/loop.jpg: it cannot be read: .*links; dog/pipe"
    )
    with pytest.raises(DataError, match=rf"{expected}.jpg: it is no regular file"):
        open_dataset("image_folder", root, image_size=16, max_bad=2)
    assert len(open_dataset("image_folder", root, image_size=16, max_bad=3).train) == 6
    (root / "nowhere.jpg").write_bytes(encoded(picture()))
    assert len(open_dataset("image_folder", root, image_size=16, max_bad=2).train) == 7


def test_many_bad_files_are_counted_and_only_some_named(root: Path) -> None:
    for number in range(40):
        (root / "train" / "cat" / f"bad{number:02d}.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"40 files .*bad04\.jpg.*and 35 more") as caught:
        open_dataset("image_folder", root, image_size=16)
    assert "bad05" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(mode="L")),
        encoded(picture(mode="CMYK")),
        encoded(picture(), "PNG"),
        encoded(picture(mode="P"), "PNG"),
        encoded(picture(mode="RGBA"), "PNG"),
        encoded(picture(mode="LA"), "PNG"),
        encoded(picture(mode="1"), "PNG"),
    ],
    ids=["grey", "cmyk", "png named jpeg", "palette", "alpha", "grey alpha", "bilevel"],
)
def test_unusual_but_sound_pictures_are_converted(root: Path, data: bytes) -> None:
    (root / "train" / "cat" / "9.jpg").write_bytes(data)
    dataset = open_dataset("image_folder", root, image_size=16)
    assert dataset.train.read(torch.tensor([3])).shape == (1, 3, 16, 16)


def test_hidden_files_are_skipped(root: Path) -> None:
    for name in ("._0.jpg", ".DS_Store"):
        (root / "train" / "cat" / name).write_bytes(b"\0\5\x16\7")
    (root / "train" / ".cache").mkdir()
    assert len(open_dataset("image_folder", root, image_size=16).train) == 6


def _without_test(root: Path) -> None:
    (root / "val").rename(root / "validation")


def _extra_class(root: Path) -> None:
    (root / "val" / "horse").mkdir()


def _nested(root: Path) -> None:
    (root / "train" / "cat" / "more").mkdir()


def _empty_class(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "horse").mkdir()


def _dangling_class(root: Path) -> None:
    (root / "train" / "horse").symlink_to(root / "nowhere")


def _unsorted(root: Path) -> None:
    (root / "val").rename(root / "sorted")
    (root / "val").mkdir()
    (root / "val" / "0.jpg").write_bytes(encoded(picture()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_test, "expected folders train and val"),
        (_extra_class, "only in the second horse"),
        (_nested, "found folders more"),
        (_empty_class, "the class has no pictures"),
        (_dangling_class, r"train: expected one folder per class, found links to nothing, horse; restore"),
        (_unsorted, "sort the pictures by class"),
    ],
)
def test_wrong_class_folders_are_refused_with_the_difference(
    root: Path, change: Callable[[Path], None], message: str
) -> None:
    change(root)
    with pytest.raises(DataError, match=message):
        open_dataset("image_folder", root, image_size=16)


def test_pictures_are_verified_once_and_again_only_after_a_change(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = index_images(root / "train", num_threads=2)
    checked: list[Path] = []
    check = index._check_file
    monkeypatch.setattr(index, "_check_file", lambda path: (checked.append(path), check(path))[1])
    assert index_images(root / "train", num_threads=1) == first
    assert checked == []
    (root / "train" / "dog" / "2.jpg").write_bytes(encoded(picture(99, (50, 50))))
    assert index_images(root / "train", num_threads=1) != first
    assert len(checked) == 6


def test_of_processes_that_start_together_one_verifies(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("index_worker.py"), root / "train", tmp_path]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [worker.communicate(timeout=120)[0] for worker in workers] == ["6\n"] * 2
    finally:
        for worker in workers:
            worker.kill()
    assert len((tmp_path / "verified").read_text().split()) == 6
    expected = "waiting for another process of this machine, which is verifying the pictures of"
    assert (tmp_path / "waiting").read_text() == f"{expected} {root / 'train'}"


def test_a_cache_that_cannot_be_written_costs_time_only(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file in the place of the folder")
    for _ in range(2):
        assert len(index_images(root / "train", num_threads=1).images) == 6
    assert "verifying the pictures of" in caplog.text
    assert "without a lock" in caplog.text


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_picture_that_changes_after_it_was_verified_is_named(root: Path, damage: str) -> None:
    train = open_dataset("image_folder", root, image_size=16).train
    path = root / "train" / "cat" / "2.jpg"
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    else:
        path.unlink()
    assert len(train.read(torch.tensor([0, 1]))) == 2
    with pytest.raises(DataError, match=r"cat/2\.jpg (has changed|was verified)"):
        train.read(torch.tensor([1, 2]))


def test_the_content_hash_follows_pictures_labels_and_size(root: Path) -> None:
    one = open_dataset("image_folder", root, image_size=16).train
    assert one.content_hash != open_dataset("image_folder", root, image_size=24).train.content_hash
    assert one.content_hash != one.take(torch.tensor([0, 1, 3])).content_hash
    assert one.take(torch.tensor([3, 0])).labels.tolist() == [1, 0]
    limited = open_dataset("image_folder", root, image_size=16, limit=Limit(images=1))
    assert limited.train.labels.tolist() == [0, 1]


def test_real_pictures_are_all_sound(data_dir: Path) -> None:
    dataset = open_dataset("image_folder", data_dir / "imagenette-subset", image_size=64, limit=Limit(images=4))
    assert dataset.num_classes == 10
    assert dataset.train.labels.bincount().tolist() == [4] * 10
    pixels = dataset.train.read(torch.arange(40)).double()
    assert 60 < pixels.mean() < 190
    assert pixels.std() > 30


def test_only_the_pictures_of_a_limit_are_verified(root: Path, tmp_path: Path) -> None:
    limit = Limit(classes=1, images=2)
    (root / "train" / "cat" / "2.jpg").write_bytes(b"damaged")
    (root / "val" / "dog" / "0.jpg").write_bytes(b"damaged")
    part = open_dataset("image_folder", root, image_size=16, limit=limit)
    assert (part.num_classes, part.train.labels.tolist(), part.test.labels.tolist()) == (2, [0, 0], [0, 0])
    save_indexes(tmp_path / "index.parquet", indexes_of(part))
    indexed = open_dataset("image_folder", root, image_size=16, limit=limit, index_file=tmp_path / "index.parquet")
    assert (indexed.content_hash, indexed.num_classes) == (part.content_hash, 2)
    (root / "train" / "cat" / "1.jpg").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1 files are no usable pictures \(cat/1\.jpg"):
        open_dataset("image_folder", root, image_size=16, limit=limit)
    assert len(open_dataset("image_folder", root, image_size=16, limit=limit, max_bad=1).train) == 1
