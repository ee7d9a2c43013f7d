"""Where large things are kept for several machines: one contract over a folder and over an object store."""

from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs

from ekgsearch.errors import StorageError
from ekgsearch.storage.arrow_store import ArrowStore
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.secrets import names_a_secret, redact

_S3_OPTIONS = frozenset({"region", "scheme", "endpoint_override"})


class ObjectStore(Protocol):
    """Objects by key; whoever reads one finds all of its bytes or none.

    Keys are relative names with ``/`` between their parts. Every method raises `StorageError` naming the key.
    """

    @property
    def uri(self) -> str:
        """Address that `open_store` takes on any machine; holds no credentials."""
        ...

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole object, replacing what was there."""
        ...

    def get(self, key: str) -> bytes:
        """Read a whole object; a missing one is an error."""
        ...

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes from byte ``offset`` on; fewer are an error."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object under the key."""
        ...

    def size(self, key: str) -> int:
        """Bytes of an object; a missing one is an error."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """Keys that begin with a text, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where the store has no limit or does not tell."""
        ...


def open_store(uri: str, *, create: bool = True) -> ObjectStore:
    """Open the store at an address.

    Args:
        uri: a folder, ``file:///folder``, ``s3://bucket/prefix`` (``?endpoint_override=http://host:port``, ``region=``
            and ``scheme=`` for other providers), or any other address that Arrow knows, such as ``gs://bucket/prefix``.
            Credentials come from the provider's own chain (environment, profile, instance), never from the address.
        create: whether a missing folder is made; buckets are never made.

    Returns:
        The store.

    Raises:
        StorageError: the address holds credentials or is not understood, or the folder or bucket is missing.
    """
    parts = urlsplit(uri)
    if not parts.scheme:
        return LocalStore(Path(uri), create=create)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)), create=create)
    options = dict(parse_qsl(parts.query))
    if "@" in parts.netloc or any(names_a_secret(name) for name in options):
        raise StorageError(
            f"the address of the store {parts.scheme}://{parts.hostname}{parts.path} holds credentials; leave them out "
            f"and set them where the provider looks for them (environment variables, profile, instance role)"
        )
    if parts.scheme == "s3" and not parts.netloc:
        raise StorageError(f"the address of the store {uri} names no bucket; expected one like s3://bucket/prefix")
    try:
        if parts.scheme == "s3":
            filesystem, root = _s3(uri, options), f"{parts.netloc}{parts.path}"
        else:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise StorageError(f"cannot open the store {uri}: {redact(str(error))}") from error
    store = ArrowStore(filesystem, root.strip("/"), uri=uri)
    store.check_reachable()
    return store


def _s3(uri: str, options: dict[str, str]) -> pyarrow.fs.S3FileSystem:
    """Open S3 so that small objects are one PUT: without delayed opening each costs three requests."""
    unknown = options.keys() - _S3_OPTIONS
    if unknown:
        raise StorageError(f"the store {uri} has options {sorted(unknown)}; expected among {sorted(_S3_OPTIONS)}")
    endpoint = options.get("endpoint_override", "")
    scheme, separator, host = endpoint.partition("://")
    return pyarrow.fs.S3FileSystem(
        region=options.get("region"),
        scheme=options.get("scheme") or (scheme if separator else None),
        endpoint_override=(host if separator else endpoint) or None,
        allow_delayed_open=True,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
