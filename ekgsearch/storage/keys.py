"""Which keys a store takes, the same for folders and buckets."""

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
