import io
import logging
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ekgsearch.data import cifar
from ekgsearch.data.datasets import open_dataset
from ekgsearch.errors import DataError


def some_pixels(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 32, 32, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, split: str, total: int, *, num: int = 3) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    shards = [some_pixels(num, seed) for seed in range(total)]
    for number, pixels in enumerate(shards):
        table = pa.table({"image": [png(one) for one in pixels], "label": list(range(num))})
        pq.write_table(table, folder / f"{split}-{number:05d}-of-{total:05d}.parquet")
    return np.concatenate(shards).transpose(0, 3, 1, 2)


def write_batches(folder: Path, *, protocol: int = 2) -> np.ndarray:
    folder.mkdir(parents=True)
    parts = []
    for number, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        pixels = some_pixels(2, number).transpose(0, 3, 1, 2)
        parts.append(pixels)
        batch = {"data": pixels.reshape(2, -1), "labels": [number, 9], "batch_label": "one of 5"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    return np.concatenate(parts)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("child", ["", "cifar10"])
def test_parquet_files_are_found_in_the_folder_and_in_its_child(tmp_path: Path, child: str) -> None:
    root = tmp_path / "data"
    train, test = write_shards(root / child, "train", 2), write_shards(root / child, "test", 1)
    before = sorted(root.rglob("*"))
    dataset = open_dataset("cifar10", root, download=False)
    assert np.array_equal(dataset.train.read(torch.arange(6)).numpy(), train)
    assert np.array_equal(dataset.test.read(torch.arange(3)).numpy(), test)
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(root.rglob("*")) == before


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_published_batches_are_read(tmp_path: Path, protocol: int) -> None:
    pixels = write_batches(tmp_path / "data" / "cifar-10-batches-py", protocol=protocol)
    dataset = open_dataset("cifar10", tmp_path / "data", download=False)
    assert np.array_equal(dataset.train.read(torch.arange(10)).numpy(), pixels[:10])
    assert np.array_equal(dataset.test.read(torch.arange(2)).numpy(), pixels[10:])
    assert dataset.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]


@pytest.mark.usefixtures("cache")
def test_cifar100_batches_carry_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        batch = {"data": some_pixels(2, 0).reshape(2, -1), "fine_labels": [3, 99], "coarse_labels": [0, 1]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    dataset = open_dataset("cifar100", tmp_path, download=False)
    assert dataset.num_classes == 100
    assert dataset.test.labels.tolist() == [3, 99]


@pytest.mark.usefixtures("cache")
def test_decoded_pixels_are_cached_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_shards(root, "train", 1)
    write_shards(root, "test", 1)
    first = open_dataset("cifar10", root, download=False)
    decoded: list[Path] = []
    decode = cifar._decode_shard
    monkeypatch.setattr(cifar, "_decode_shard", lambda path: (decoded.append(path), decode(path))[1])
    again = open_dataset("cifar10", root, download=False)
    assert decoded == []
    assert again.content_hash == first.content_hash
    assert torch.equal(again.train.read(torch.arange(3)), first.train.read(torch.arange(3)))
    write_shards(root, "test", 1, num=5)
    assert len(open_dataset("cifar10", root, download=False).test) == 5
    assert [path.name for path in decoded] == ["test-00000-of-00001.parquet"]


def _flip_a_bit(folder: Path) -> None:
    for path in folder.glob("*-images.npy"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)


def _cut(folder: Path) -> None:
    for path in folder.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:40])


def _garble(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.write_text("[1, 2")


def _replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


@pytest.mark.usefixtures("cache")
def test_of_those_who_open_the_same_files_at_once_one_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_shards(tmp_path, "train", 1)
    decoded: list[Path] = []
    decode = cifar._decode_shard

    def until_somebody_waits(path: Path) -> tuple[np.ndarray, np.ndarray]:
        decoded.append(path)
        deadline = time.monotonic() + 30
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        return decode(path)

    monkeypatch.setattr(cifar, "_decode_shard", until_somebody_waits)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(cifar._open_shards, [sorted(tmp_path.glob("train-*"))] * 2)
    assert len(decoded) == 1
    assert "waiting for another process of this machine, which is decoding the same images" in caplog.text
    assert first.content_hash == second.content_hash


@pytest.mark.parametrize("damage", [_flip_a_bit, _cut, _garble, _replace_by_a_file])
def test_a_damaged_or_unwritable_cache_is_only_a_warning(
    tmp_path: Path, cache: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    train = write_shards(root, "train", 1)
    write_shards(root, "test", 1)
    open_dataset("cifar10", root, download=False)
    damage(cache)
    dataset = open_dataset("cifar10", root, download=False)
    assert np.array_equal(dataset.train.read(torch.arange(3)).numpy(), train)
    assert "cache" in caplog.text


@pytest.mark.usefixtures("cache")
def test_missing_data_is_reported_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither train-\*\.parquet .* nor the batches"):
        open_dataset("cifar10", tmp_path, download=False)
    with pytest.raises(DataError, match="found none"):
        open_dataset("cifar10", tmp_path / "absent", download=False)


@pytest.mark.usefixtures("cache")
def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 3)
    write_shards(tmp_path, "test", 1)
    for number in (0, 2):
        (tmp_path / f"train-0000{number}-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"of 3 shards .*, \[0, 2\] are missing"):
        open_dataset("cifar10", tmp_path, download=False)


@pytest.mark.usefixtures("cache")
def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder)
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4 is missing"):
        open_dataset("cifar10", tmp_path, download=False)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"no picture"], "label": [0]}, "row 0: expected a 32x32 picture"),
        ({"image": [png(some_pixels(1, 0)[0][:8, :8])], "label": [0]}, "8x8 pixels"),
        ({"image": [png(some_pixels(1, 0)[0])], "label": [10]}, r"0\.\.9, found 10"),
        ({"picture": [b""], "label": [0]}, "column image or img, found picture, label"),
        ({"image": [b""], "label": [0]}, "row 0: .*the file is empty"),
        (
            {"image": [png(some_pixels(1, 0)[0])] * 2, "label": [0, None]},
            "row 1: expected a whole number .* found null",
        ),
        ({"image": ["a.png"], "label": [0]}, "column image holds paths or other text, expected bytes"),
    ],
)
def test_damaged_parquet_rows_are_named(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    write_shards(tmp_path, "train", 1)
    pq.write_table(pa.table(columns), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=message):
        open_dataset("cifar10", tmp_path, download=False)


@pytest.mark.usefixtures("cache")
def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", 1)
    write_shards(tmp_path, "test", 1)
    path = tmp_path / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet cannot be read as parquet"):
        open_dataset("cifar10", tmp_path, download=False)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "batch", [[1], {"data": [0]}, {"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}, {"labels": [0]}]
)
def test_a_batch_of_another_form_is_refused(tmp_path: Path, batch: Any) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_batches(folder)
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="expected 'data'"):
        open_dataset("cifar10", tmp_path, download=False)


@pytest.mark.usefixtures("cache")
def test_a_failed_download_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(utils, "download_and_extract_archive", unreachable)
    with pytest.raises(DataError, match=r"could not be downloaded .*no route to host.*cifar-10-batches-py"):
        open_dataset("cifar10", tmp_path)


@pytest.mark.usefixtures("cache")
def test_a_download_is_opened_from_where_it_was_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def fetch(url: str, root: str, *, filename: str, md5: str) -> None:
        assert filename in url
        assert len(md5) == 32
        write_batches(Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr(utils, "download_and_extract_archive", fetch)
    assert len(open_dataset("cifar10", tmp_path).train) == 10


def test_a_cache_that_cannot_hold_a_download_asks_for_a_folder(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("no folder")
    with pytest.raises(DataError, match="name a folder in the job"):
        open_dataset("cifar10")
