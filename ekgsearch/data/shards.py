"""Parquet files that hold a data set between them: finding them, and their columns."""

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ekgsearch.errors import DataError


def check_complete(paths: Sequence[Path]) -> None:
    """Compare the numbers in names like train-00000-of-00005.parquet with how many they say there are.

    Raises:
        DataError: shards are missing or of two sets.
    """
    numbers = [re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name) for path in paths]
    found = {int(match[1]) for match in numbers if match}
    expected = {int(match[2]) for match in numbers if match}
    if len(expected) > 1:
        raise DataError(f"{paths[0].parent}: parquet files of {sorted(expected)} shards are mixed; keep one set")
    for total in expected:
        if missing := sorted(set(range(total)) - found):
            raise DataError(f"{paths[0].parent}: of {total} shards like {paths[0].name}, {missing} are missing")


def column_name(schema: pa.Schema, names: Sequence[str], path: Path) -> str:
    """Find the first of some columns that a file has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if name in schema.names:
            return name
    raise DataError(f"{path}: expected a column {' or '.join(names)}, found {', '.join(schema.names)}")


def stored_bytes(picture: object) -> bytes:
    """Bytes of a picture in a row: bytes, or a struct with a field `bytes`; empty where there are none."""
    data = picture.get("bytes") if isinstance(picture, dict) else picture
    return data if isinstance(data, bytes) else b""
