"""Which keys and ranges a store takes, the same for folders and buckets."""

from pathlib import PurePosixPath

from ekgsearch.errors import StorageError
from ekgsearch.storage.files import PARTIAL_SUFFIX
from ekgsearch.storage.paths import check_name


def check_key(key: str) -> None:
    """Refuse keys that a folder and a bucket would read differently.

    Args:
        key: key of an object.

    Raises:
        StorageError: the key leads out of the store, has empty parts or ``.``, or looks like an unfinished file.
    """
    check_name(key)
    if PurePosixPath(key).as_posix() != key or key.endswith(PARTIAL_SUFFIX):
        raise StorageError(
            f"key {key!r} has empty parts, '.' or ends with {PARTIAL_SUFFIX!r}; expected one like 'bank/0001'"
        )


def check_range(key: str, offset: int, size: int) -> None:
    """Refuse a range that does not lie behind the start of an object.

    Args:
        key: key of the object.
        offset: first byte.
        size: number of bytes.

    Raises:
        StorageError: a number is negative.
    """
    if offset < 0 or size < 0:
        raise StorageError(f"{key!r}: bytes {offset} + {size} were asked for; expected numbers from 0")


def check_length(place: str, offset: int, size: int, data: bytes) -> None:
    """Refuse a read that ended before its range did.

    Args:
        place: where the bytes come from, in words.
        offset: first byte that was asked for.
        size: number of bytes that were asked for.
        data: what was read.

    Raises:
        StorageError: bytes are missing.
    """
    if len(data) != size:
        raise StorageError(
            f"{place} is too short: expected {size} bytes from {offset} on, found {len(data)}; write it again"
        )
