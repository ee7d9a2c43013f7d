"""Parquet files that hold a data set between them: finding them, and their columns."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ekgsearch.errors import DataError

_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet")
"""Prefix, number and number of shards; some programs add a checksum, which differs between the shards of one set."""


def find_shards(folder: Path, pattern: str) -> list[Path]:
    """Paths of the files of a folder that match a pattern, by name; hidden files are skipped."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def check_complete(paths: Sequence[Path]) -> None:
    """Compare the numbers in names like train-00000-of-00005.parquet with how many they say there are.

    Raises:
        DataError: shards are missing or of two sets.
    """
    sets: dict[tuple[str, int] | None, dict[int, Path]] = {}
    for path in paths:
        match = _NUMBERED.fullmatch(path.name)
        key = (match[1], int(match[3])) if match else None
        number = int(match[2]) if match else len(sets.get(None, {}))
        twin = sets.setdefault(key, {}).setdefault(number, path)
        if twin != path:
            raise _mixed(twin, path)
    if len(sets) > 1:
        first, second, *_ = sets.values()
        raise _mixed(next(iter(first.values())), next(iter(second.values())))
    for key, found in sets.items():
        expected = set(range(len(found) if key is None else key[1]))
        if missing := sorted(expected - found.keys()):
            raise DataError(f"{paths[0].parent}: of {len(expected)} shards like {paths[0].name}, {missing} are missing")
        if beyond := [path.name for number, path in found.items() if number not in expected]:
            raise DataError(f"{paths[0].parent}: expected shards 0..{len(expected) - 1}, found {beyond[0]}; rename it")


def _mixed(first: Path, second: Path) -> DataError:
    return DataError(
        f"{first.parent}: parquet files of two sets are mixed, such as {first.name} and {second.name}; keep one set"
    )


def picture_columns(path: Path) -> tuple[str, str]:
    """Find the column of pictures and that of labels in the schema of a file, of which no row is read.

    Raises:
        DataError: the file cannot be read, has no such columns, or they hold something else than bytes and whole
            numbers.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    pictures, labels = _column(schema, ("image", "img"), path), _column(schema, ("label", "fine_label"), path)
    kind = _value_type(schema.field(pictures).type)
    if pa.types.is_struct(kind) and "bytes" in kind.names:
        kind = _value_type(kind.field("bytes").type)
    if not _is_bytes(kind):
        held = "paths or other text" if _is_text(kind) else f"values of type {kind}"
        raise DataError(f"{path}: column {pictures} holds {held}, expected bytes, or structs with a field of bytes")
    kind = _value_type(schema.field(labels).type)
    if not pa.types.is_integer(kind):
        raise DataError(f"{path}: column {labels} holds values of type {kind}, expected whole numbers")
    return pictures, labels


def unreadable(path: Path, error: Exception) -> DataError:
    """Describe a file that is no parquet file."""
    return DataError(f"{path} cannot be read as parquet: {error}; fetch it again")


def stored_bytes(picture: object) -> bytes:
    """Bytes of a picture in a row: bytes, or a struct with a field `bytes`; empty where there are none."""
    data = picture.get("bytes") if isinstance(picture, dict) else picture
    return data if isinstance(data, bytes) else b""


def _column(schema: pa.Schema, names: Sequence[str], path: Path) -> str:
    """Name the first of some columns that a file has."""
    for name in names:
        if (count := schema.names.count(name)) == 1:
            return name
        if count:
            raise DataError(f"{path}: expected one column {name}, found {count}")
    raise DataError(f"{path}: expected a column {' or '.join(names)}, found {', '.join(schema.names)}")


def _value_type(kind: pa.DataType) -> pa.DataType:
    """Type of the values of a column, which may be stored as a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
