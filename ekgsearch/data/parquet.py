"""Pictures in the rows of parquet files, verified once and copied to where a single one can be read quickly."""

import itertools
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ekgsearch.data.cache import cache_folder, cached_json, locked, source_key
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.folder import picture_statistics
from ekgsearch.data.images import Dataset
from ekgsearch.data.index import LOG_SECONDS, BadFile, ImageIndex, IndexedImage, check_picture
from ekgsearch.data.shards import check_complete, find_shards, picture_columns, stored_bytes, unreadable
from ekgsearch.errors import DataError, MissingDataError
from ekgsearch.storage.files import PARTIAL_SUFFIX, free_bytes, sync_folder, write_error

logger = logging.getLogger(__name__)

_SPLITS = (("train",), ("val", "validation", "test"))
_ROWS_READ = 64


@dataclass(frozen=True)
class PackSource:
    """Pictures one after the other in one file.

    Parquet keeps rows in compressed groups of megabytes: reading one row by its number costs reading its group, a
    thousand times what is wanted of a shuffled epoch.

    Attributes:
        path: the file, in the cache.
        origin: folder of the parquet files.
        spans: offset and length of each picture, by its name.
    """

    path: Path
    origin: Path
    spans: Mapping[str, tuple[int, int]]

    def read(self, image: IndexedImage) -> bytes:
        """Read a picture."""
        offset, length = self.spans[image.path]
        with open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def where(self, image: IndexedImage) -> str:
        """Name the row and the file that holds its copy."""
        return f"{self.origin / image.path} (its copy in {self.path}: remove that to copy again)"


def open_parquet(root: Path, image_size: int, *, channels: int = 3, max_bad: int = 0, num_threads: int) -> Dataset:
    """Open pictures that are stored as bytes in parquet files.

    The training set is `train*.parquet` in the folder, or all parquet files of its subfolder `train`; the test set the
    same with `val`, `validation` or `test`. The pictures are a column `image` (or `img`) of bytes, or of structs with a
    field `bytes`; the classes a column `label` (or `fine_label`) of whole numbers 0, 1, ... without a gap. Files may be
    any number of shards; where their names say of how many, none may be missing.

    All sound pictures are copied into one file of the user's cache, which takes as much room as they do.

    Args:
        root: the folder.
        image_size: height and width that pictures are brought to, pixels.
        channels: 1, 3 or 4, what pictures are converted to: grey, RGB or RGBA.
        max_bad: unusable rows that are left out of the training set with a warning; the test set allows none.
        num_threads: pictures decoded at once.

    Raises:
        MissingDataError: there are no files of a set.
        DataError: columns or classes are missing, files of two sets are mixed, a column is of a wrong kind, or
            too many rows are unusable, which a row without a label is.
    """
    mean, std = picture_statistics(channels)
    found = [_find(root, names) for names in _SPLITS]
    columns = {path: picture_columns(path) for paths in found for path in paths}
    train, test = (_open_split(paths, columns, num_threads) for paths in found)
    num_classes = _check_labels(root, train[0], test[0])
    for (index, _), allowed in ((train, max_bad), (test, 0)):
        index.check_bad(allowed)
    train_images, test_images = (
        EncodedImages(index.images, source, image_size, num_threads=num_threads, channels=channels)
        for index, source in (train, test)
    )
    names = tuple(map(str, range(num_classes)))
    return Dataset("parquet", train_images, test_images, num_classes, train_images.image_shape, mean, std, names)


def count_classes(root: Path) -> int:
    """Count the classes of the training set by its labels alone.

    Raises:
        DataError: files or their column of labels are missing.
    """
    labels: set[int] = set()
    for path in _find(root, _SPLITS[0]):
        try:
            _, column = picture_columns(path)
            labels |= set(pq.read_table(path, columns=[column]).column(column).unique().to_pylist())
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as parquet: {error}; fetch it again") from error
    return len(labels - {None})


def _open_split(
    paths: Sequence[Path], columns: Mapping[Path, tuple[str, str]], num_threads: int
) -> tuple[ImageIndex, PackSource]:
    """Verify and copy the pictures of a split, unless that was done and nothing has changed since."""
    key = source_key("parquet-pack", paths)
    pack = cache_folder() / f"{key}.pack"
    with locked(key, f"verifying and copying the pictures of {paths[0].parent}", required=True):
        if not pack.exists():
            pack.with_suffix(".json").unlink(missing_ok=True)
        rows = cached_json(key, lambda: _copy(paths, columns, pack, num_threads))
    images, bad, spans = [], [], {}
    for name, label, (reason, *facts), offset, length in rows:
        if reason:
            bad.append(BadFile(name, reason))
        else:
            images.append(IndexedImage(name, label, *facts))
            spans[name] = (offset, length)
    labels = sorted({label for _, label, *_ in rows if label is not None})
    index = ImageIndex(paths[0].parent, tuple(map(str, labels)), tuple(images), tuple(bad))
    return index, PackSource(pack, paths[0].parent, spans)


def _find(root: Path, names: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise MissingDataError(f"parquet: expected a folder of data at {root}, found none; set data.root to it")
    for name in names:
        next_to, inside = find_shards(root, f"{name}*.parquet"), find_shards(root / name, "*.parquet")
        # The pattern of val finds validation, too.
        kinds = {path.name[: len(re.match("[a-z]*", path.name)[0])]: path for path in next_to}  # type: ignore[index]
        if (next_to and inside) or len(kinds) > 1:
            first, second, *_ = [*kinds.values(), *inside]
            raise DataError(f"parquet: expected one set of files {name}, found {first} and {second}; keep one")
        if next_to or inside:
            check_complete(next_to or inside)
            return next_to or inside
    known = " or ".join(f"{name}*.parquet" for name in names)
    raise MissingDataError(
        f"parquet: expected {known} in {root}, or a folder of parquet files of that name, found none"
    )


def _copy(paths: Sequence[Path], columns: Mapping[Path, tuple[str, str]], pack: Path, num_threads: int) -> list[Any]:
    """Write the sound pictures of all rows one after the other.

    Returns:
        Name, label (None where there is none), check, offset and length of each row.
    """
    needed, free = sum(path.stat().st_size for path in paths), free_bytes(pack.parent)
    if free is not None and free < needed:
        raise DataError(
            f"parquet: the pictures of {paths[0].parent} take {needed / 1e9:.3g} GB in {pack.parent}, "
            f"{free / 1e9:.3g} GB are free; set XDG_CACHE_HOME to a folder with more room"
        )
    partial = pack.with_name(f".{pack.name}{PARTIAL_SUFFIX}")
    rows: list[Any] = []
    start = logged = time.monotonic()
    try:
        with partial.open("wb") as file, ThreadPoolExecutor(num_threads, thread_name_prefix="verify") as pool:
            for chunk in _chunks(paths, columns):
                checks = pool.map(check_picture, [data for _, _, data in chunk])
                for (name, label, data), sound in zip(chunk, checks, strict=True):
                    check = ("the label is null",) if label is None else sound
                    rows.append([name, label, check, file.tell(), len(data)])
                    file.write(b"" if check[0] else data)
                if time.monotonic() - logged > LOG_SECONDS:
                    logged = time.monotonic()
                    logger.info("verified %d pictures, %.0f per second", len(rows), len(rows) / (logged - start))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, pack)
        sync_folder(pack.parent)
    except OSError as error:
        raise write_error(pack, error, needed) from error
    finally:
        partial.unlink(missing_ok=True)
    return rows


def _chunks(
    paths: Sequence[Path], columns: Mapping[Path, tuple[str, str]]
) -> Iterator[list[tuple[str, int | None, bytes]]]:
    """Name, label and bytes of some rows at a time."""
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                numbers = itertools.count()
                for batch in file.iter_batches(_ROWS_READ, columns=columns[path]):
                    pictures, labels = (batch.column(name).to_pylist() for name in columns[path])
                    yield [
                        (f"{path.name}#{next(numbers)}", label, stored_bytes(picture))
                        for picture, label in zip(pictures, labels, strict=True)
                    ]
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from error


def _check_labels(root: Path, train: ImageIndex, test: ImageIndex) -> int:
    """Count the classes, those of unusable pictures too."""
    ours, theirs = ({int(name) for name in index.class_names} for index in (train, test))
    # Labels may be as large as 2^63: nothing here may be as long as the largest one.
    if not ours or min(ours) < 0 or max(ours) != len(ours) - 1:
        below = sorted(label for label in ours if label < 0)
        missing = itertools.islice((label for label in range(max(ours, default=0)) if label not in ours), 5)
        raise DataError(
            f"parquet: expected training labels 0, 1, ... without a gap in {root}, found {len(ours)} different ones; "
            f"look at {below[:5] or list(missing)}"
        )
    if not theirs or not theirs <= ours:
        raise DataError(
            f"parquet: expected test labels among the {len(ours)} of the training set in {root}, "
            f"found {sorted(theirs - ours)[:5] or 'no test pictures'}"
        )
    return len(ours)
