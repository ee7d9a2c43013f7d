"""Small JSON files that carry their own checksum."""

import json
from pathlib import Path
from typing import Any

from ekgsearch.errors import StorageError
from ekgsearch.records import canonical_json, content_hash
from ekgsearch.storage.files import read_bytes


def sealed(value: Any) -> bytes:
    """Serialise a JSON value together with its checksum, for `read_sealed`."""
    return canonical_json({"value": value, "sha256": content_hash(value)}).encode()


def read_sealed(path: Path) -> Any:
    """Read the value of a file that holds what `sealed` gave.

    Args:
        path: file to read.

    Raises:
        StorageError: the file is missing, cannot be read or is damaged.
    """
    return unsealed(read_bytes(path), str(path))


def unsealed(data: bytes, place: str) -> Any:
    """Take the value out of what `sealed` gave.

    Args:
        data: the bytes.
        place: where they are from, for the message.

    Raises:
        StorageError: they are damaged.
    """
    try:
        stored = json.loads(data)
        value, expected = stored["value"], stored["sha256"]
        found = content_hash(value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{place} is damaged: expected a JSON value with its checksum, found {error!r}") from error
    if found != expected:
        raise StorageError(f"{place} is damaged: expected SHA-256 {expected}, found {found}")
    return value
