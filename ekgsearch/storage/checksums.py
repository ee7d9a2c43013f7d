"""How a file carries a checksum of all of its own bytes: computed with zeros in the checksum's place."""

import hashlib

from ekgsearch.errors import StorageError

CHECKSUM_KEY = "sha256"
"""Metadata key under which a file keeps its checksum."""

BLANK_CHECKSUM = "0" * 64
"""What stands in the checksum's place while it is computed."""


def seal(data: bytearray, start: int) -> None:
    """Put the checksum of a serialised file in its place.

    Args:
        data: whole content of the file, with `BLANK_CHECKSUM` in its place; changed in place.
        start: position of the checksum's first digit.

    Raises:
        ValueError: no blank stands at the position.
    """
    end = start + len(BLANK_CHECKSUM)
    if start < 0 or data[start:end] != BLANK_CHECKSUM.encode():
        raise ValueError(f"expected a blank checksum at byte {start} of {len(data)}")
    data[start:end] = hashlib.sha256(data).hexdigest().encode()


def verify_seal(data: bytes, start: int, source: str) -> None:
    """Compare the checksum that a file carries with that of its bytes.

    Args:
        data: whole content of the file.
        start: position of the checksum's first digit.
        source: name of the file or object, for the message.

    Raises:
        StorageError: a byte has changed.
    """
    end = start + len(BLANK_CHECKSUM)
    digest = hashlib.sha256(data[:start])
    digest.update(BLANK_CHECKSUM.encode())
    digest.update(memoryview(data)[end:])
    if data[start:end] != digest.hexdigest().encode():
        raise StorageError(
            f"{source} is damaged: expected SHA-256 {data[start:end].decode(errors='replace')}, found "
            f"{digest.hexdigest()} over {len(data)} bytes; restore it from a copy or write it again"
        )
