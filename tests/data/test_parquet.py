"""Pictures in parquet files: verified like a folder, read by row, never at the cost of a row group."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.loading import encoded, photograph, settings
from data.test_damage import BAD
from PIL import Image

from ekgsearch.data import parquet
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.decode import square_pixels
from ekgsearch.data.loader import open_loader
from ekgsearch.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


def pictures(count: int, start: int = 0) -> list[bytes]:
    return [encoded(photograph(start + number, (40 + number, 36))) for number in range(count)]


def write(path: Path, data: Sequence[bytes | None], labels: Sequence[int | None], *, struct: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": item, "path": None} for item in data] if struct else data
    pq.write_table(pa.table({"image": images, "label": labels, "width": [1] * len(data)}), path, row_group_size=4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training shards of six pictures, one test file of three; three classes."""
    folder = tmp_path / "shards"
    for shard in range(2):
        write(folder / f"train-{shard:05d}-of-00002.parquet", pictures(6, 10 * shard), [0, 1, 2] * 2)
    write(folder / "val-00000-of-00001.parquet", pictures(3, 50), [2, 1, 0])
    return folder


def test_rows_are_read_in_the_order_of_the_shards(root: Path) -> None:
    dataset = open_dataset("parquet", root, image_size=16, num_threads=2)
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (12, 3, 3)
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4
    data = pictures(6, 10)[1]
    expected = square_pixels(Image.open(io.BytesIO(data)), 16)
    assert np.array_equal(dataset.train.read(torch.tensor([0, 7]))[1].numpy(), expected)


@pytest.mark.parametrize("struct", [False, True])
def test_folders_of_shards_and_structs_of_bytes_are_understood(root: Path, tmp_path: Path, struct: bool) -> None:
    other = tmp_path / "other"
    for shard in range(2):
        write(other / "train" / f"{shard}.parquet", pictures(6, 10 * shard), [0, 1, 2] * 2, struct=struct)
    write(other / "test" / "data.parquet", pictures(3, 50), [2, 1, 0], struct=struct)
    expected = open_dataset("parquet", root, image_size=16)
    assert open_dataset("parquet", other, image_size=16).content_hash == expected.content_hash


def test_a_bad_row_is_named_with_its_reason_and_may_be_left_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    kinds = {kind: data for kind, data in BAD.items() if kind not in ("another picture", "rotten jpeg")}
    write(root / "train-00000-of-00002.parquet", [*pictures(6), *kinds.values()], [0, 1, 2] * 2 + [0] * len(kinds))
    with pytest.raises(DataError, match=r"11 files are no .*train-00000-of-00002\.parquet#6: the file is empty"):
        open_dataset("parquet", root, image_size=16, max_bad=10)
    dataset = open_dataset("parquet", root, image_size=16, max_bad=11)
    assert len(dataset.train) == 12
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4
    assert "they are left out" in caplog.text


def test_pictures_are_copied_once_and_again_after_a_change(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    checked: list[int] = []
    check = parquet.check_picture
    monkeypatch.setattr(parquet, "check_picture", lambda data: (checked.append(len(data)), check(data))[1])
    first = open_dataset("parquet", root, image_size=16)
    assert len(checked) == 15
    assert open_dataset("parquet", root, image_size=16).content_hash == first.content_hash
    assert len(checked) == 15
    for pack in cache.glob("*.pack"):
        pack.unlink()
    again = open_dataset("parquet", root, image_size=16)
    assert torch.equal(again.train.read(torch.arange(12)), first.train.read(torch.arange(12)))
    assert len(checked) == 30
    write(root / "val-00000-of-00001.parquet", pictures(3, 70), [0, 1, 2])
    assert open_dataset("parquet", root, image_size=16).content_hash != first.content_hash
    assert len(checked) == 33


def test_processes_that_start_together_copy_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    check = parquet.check_picture
    monkeypatch.setattr(parquet, "check_picture", lambda data: (checked.append(len(data)), check(data))[1])
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_dataset("parquet", root, image_size=16), range(4)))
    assert len({dataset.content_hash for dataset in opened}) == 1
    assert len(checked) == 15


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_a_row_that_rots_in_the_copy_is_replaced(root: Path, cache: Path, backend: str) -> None:
    images = open_dataset("parquet", root, image_size=16).train
    [pack] = [path for path in cache.glob("*.pack") if path.stat().st_size > 8000]
    with pack.open("r+b") as file:
        file.seek(400)
        file.write(bytes(50))
    loader = open_loader(images, settings(loader=backend, shuffle=False))
    ids = torch.cat([batch.ids for batch in loader.epoch(1)])
    assert ids.tolist() == [3, *range(1, 12)]
    assert list(loader.damaged) == [0]
    assert "train-00000-of-00002.parquet#0 (its copy in" in loader.damaged[0]


def _missing_shard(root: Path) -> None:
    (root / "train-00001-of-00002.parquet").unlink()


def _no_test(root: Path) -> None:
    (root / "val-00000-of-00001.parquet").unlink()


def _no_parquet(root: Path) -> None:
    (root / "val-00000-of-00001.parquet").write_bytes(b"hello")


def _no_labels(root: Path) -> None:
    pq.write_table(pa.table({"image": pictures(1)}), root / "val-00000-of-00001.parquet")


def _names_for_labels(root: Path) -> None:
    pq.write_table(pa.table({"image": pictures(1), "label": ["cat"]}), root / "val-00000-of-00001.parquet")


def _gap(root: Path) -> None:
    write(root / "train-00000-of-00002.parquet", pictures(6), [0, 1, 2, 3, 5, 5])


def _labels_far_apart(root: Path) -> None:
    write(root / "train-00000-of-00002.parquet", pictures(6), [0, 10**9, 2 * 10**9, 2**62, 1, 2])


def _negative_label(root: Path) -> None:
    write(root / "train-00000-of-00002.parquet", pictures(6), [0, 1, 2, -1, 4, 2])


def _class_of_bad_pictures(root: Path) -> None:
    write(root / "train-00000-of-00002.parquet", [*pictures(6), b"", b""], [0, 1, 2, 0, 1, 2, 3, 3])


def _two_numbers_of_shards(root: Path) -> None:
    write(root / "train-00000-of-00003.parquet", pictures(1), [0])


def _two_checksums(root: Path) -> None:
    write(root / "train-00001-of-00002-0a1b.parquet", pictures(1), [0])


def _another_prefix(root: Path) -> None:
    write(root / "train_old-00000-of-00002.parquet", pictures(1), [0])


def _whole_and_shards(root: Path) -> None:
    write(root / "train.parquet", pictures(1), [0])


def _files_and_a_folder(root: Path) -> None:
    write(root / "train" / "0.parquet", pictures(1), [0])


def _val_and_validation(root: Path) -> None:
    write(root / "validation.parquet", pictures(1), [0])


def _number_beyond(root: Path) -> None:
    write(root / "train-00002-of-00002.parquet", pictures(1), [0])


def _dangling(root: Path) -> None:
    _no_test(root)
    (root / "val.parquet").symlink_to(root / "nowhere")


def _null_label(root: Path) -> None:
    write(root / "train-00000-of-00002.parquet", pictures(6), [0, 1, 2, None, 1, 2])


def _unknown_test_label(root: Path) -> None:
    write(root / "val-00000-of-00001.parquet", pictures(3), [0, 1, 7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_missing_shard, r"of 2 shards like train-00000-of-00002\.parquet, \[1\] are missing"),
        (_no_test, r"expected val\*\.parquet or validation\*\.parquet or test\*\.parquet"),
        (_no_parquet, "cannot be read as parquet"),
        (_no_labels, "expected a column label or fine_label, found image"),
        (_names_for_labels, "column label holds values of type string, expected whole numbers"),
        (_gap, r"without a gap .*found 5 different ones; look at \[4\]"),
        (_null_label, r"1 files are no .*\(train-00000-of-00002\.parquet#3: the label is null\)"),
        (_labels_far_apart, r"without a gap .*found 6 different ones; look at \[3, 4, 5, 6, 7\]"),
        (_negative_label, r"without a gap .*look at \[-1\]"),
        (_class_of_bad_pictures, r"2 files are no .*no usable one is left of the class 3; mend"),
        (_two_numbers_of_shards, r"two sets are mixed, such as train-00000-of-00002\.parquet and .*of-00003"),
        (_two_checksums, r"two sets are mixed, such as train-00001-of-00002-0a1b\.parquet and train-00001-of-00002\.p"),
        (_another_prefix, r"two sets are mixed, such as .* and train_old-00000-of-00002\.parquet"),
        (_whole_and_shards, r"two sets are mixed, such as .* and train\.parquet"),
        (_files_and_a_folder, r"one set of files train, found .*of-00002\.parquet and .*/train/0\.parquet"),
        (_val_and_validation, r"one set of files val, found .*/val-00000-of-00001\.parquet and .*/validation\.parquet"),
        (_number_beyond, r"expected shards 0\.\.1, found train-00002-of-00002\.parquet; rename it"),
        (_dangling, r"val\.parquet cannot be read as parquet"),
        (_unknown_test_label, r"expected test labels among the 3 .*found \[7\]"),
    ],
)
def test_wrong_files_are_refused_with_the_difference(root: Path, change, message: str) -> None:
    change(root)
    with pytest.raises(DataError, match=message):
        open_dataset("parquet", root, image_size=16, max_bad=2 if change is _class_of_bad_pictures else 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.jpg"], "label": [0]}, "column image holds paths or other text, expected bytes"),
        ({"image": [{"path": "a.jpg"}], "label": [0]}, r"column image holds values of type struct<path: string>"),
        ({"image": [{"bytes": "a.jpg"}], "label": [0]}, "column image holds paths or other text"),
        ({"image": [[1, 2]], "label": [0]}, "column image holds values of type list"),
        ({"image": [b""], "label": [0.0]}, "column label holds values of type double, expected whole numbers"),
    ],
)
def test_a_column_of_a_wrong_kind_is_named_before_a_row_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), root / "val-00000-of-00001.parquet")
    monkeypatch.setattr(parquet, "check_picture", lambda data: pytest.fail("a row was read"))
    with pytest.raises(DataError, match=message):
        open_dataset("parquet", root, image_size=16)


def test_columns_of_a_dictionary_and_hidden_files_are_understood(root: Path) -> None:
    expected = open_dataset("parquet", root, image_size=16)
    (root / "train").mkdir()
    for path in root.glob("train-*"):
        path.rename(root / "train" / path.name)
    (root / "train" / "._train-00000-of-00002.parquet").write_bytes(b"\0\5\x16\7")
    labels = pa.array([2, 1, 0], pa.int8()).dictionary_encode()
    images = pa.array(pictures(3, 50), pa.large_binary())
    pq.write_table(pa.table({"img": images, "fine_label": labels}), root / "val-00000-of-00001.parquet")
    assert open_dataset("parquet", root, image_size=16).content_hash == expected.content_hash


def test_a_cache_without_room_is_refused_before_anything_is_copied(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    full = os.statvfs_result((4096, 4096, 10, 1, 1, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(DataError, match=r"take .* GB in .*e-06 GB are free; set XDG_CACHE_HOME"):
        open_dataset("parquet", root, image_size=16)
    assert not list(cache.glob("*.pack"))
