"""Where large things are kept for several machines: one contract over a folder and over an object store."""

from datetime import timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs

from ekgsearch.errors import StorageError
from ekgsearch.storage.arrow_store import ArrowStore
from ekgsearch.storage.create_once import ConditionalWriter
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.secrets import credentials_in, redact

_S3_OPTIONS = frozenset({"region", "scheme", "endpoint_override"})
_GCS_OPTIONS = frozenset({"anonymous", "scheme", "endpoint_override", "retry_limit_seconds"})


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

    def create(self, key: str, data: bytes | bytearray | memoryview) -> bool:
        """Write a whole object unless another is there; whether the object there is now equal to this one."""
        ...

    @property
    def creates_once(self) -> bool:
        """Whether of several writers that `create` the same key at the same moment exactly one wins."""
        ...

    def get(self, key: str) -> bytes:
        """Read a whole object; a missing one is an error."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object under the key."""
        ...

    def size(self, key: str) -> int:
        """Bytes of an object; a missing one is an error."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the objects whose keys begin with a text, by key, sorted."""
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
            and ``scheme=`` for other providers), ``gs://bucket/prefix``, or any other address that Arrow knows
            (``abfs://``, ``hdfs://``, ``fsspec+NAME://``).
            Credentials come from the provider's own chain (environment, profile, instance), never from the address.
        create: whether a missing folder is made; buckets are never made.

    Returns:
        The store.

    Raises:
        StorageError: the address holds credentials or is not understood, or the folder or bucket is missing.
    """
    reason = credentials_in(uri)
    if reason:
        raise StorageError(reason)
    parts = urlsplit(uri)
    if not parts.scheme:
        return LocalStore(Path(uri), create=create)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)), create=create)
    options = dict(parse_qsl(parts.query))
    if parts.scheme in _OPENERS and not parts.netloc:
        raise StorageError(
            f"the address of the store {uri} names no bucket; expected one like {parts.scheme}://bucket/prefix"
        )
    try:
        if parts.scheme in _OPENERS:
            filesystem, root = _OPENERS[parts.scheme](uri, options), f"{parts.netloc}{parts.path}"
        else:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise StorageError(f"cannot open the store {uri}: {redact(str(error))}") from error
    store = ArrowStore(filesystem, root.strip("/"), uri=uri, writer=ConditionalWriter(uri))
    store.check_reachable()
    return store


def _s3(uri: str, options: dict[str, str]) -> pyarrow.fs.FileSystem:
    """Open S3 so that small objects are one PUT: without delayed opening each costs three requests."""
    _refuse_unknown(uri, options, _S3_OPTIONS)
    host, scheme = _endpoint(options)
    return pyarrow.fs.S3FileSystem(
        region=options.get("region"),
        scheme=scheme,
        endpoint_override=host,
        allow_delayed_open=True,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )


def _gcs(uri: str, options: dict[str, str]) -> pyarrow.fs.FileSystem:
    """Open Google Cloud so that a request fails after half a minute; Arrow's own limit is a quarter of an hour."""
    _refuse_unknown(uri, options, _GCS_OPTIONS)
    host, scheme = _endpoint(options)
    return pyarrow.fs.GcsFileSystem(
        anonymous=options.get("anonymous") == "true",
        scheme=scheme or "https",
        endpoint_override=host,
        retry_time_limit=timedelta(seconds=float(options.get("retry_limit_seconds", 30))),
    )


def _endpoint(options: dict[str, str]) -> tuple[str | None, str | None]:
    """Host with port, and scheme, of another provider; None where the address does not say."""
    endpoint = options.get("endpoint_override", "")
    scheme, separator, host = endpoint.partition("://")
    return (host if separator else endpoint) or None, options.get("scheme") or (scheme if separator else None)


def _refuse_unknown(uri: str, options: dict[str, str], known: frozenset[str]) -> None:
    unknown = options.keys() - known
    if unknown:
        raise StorageError(f"the store {uri} has options {sorted(unknown)}; expected among {sorted(known)}")


_OPENERS = {"s3": _s3, "gs": _gcs}
