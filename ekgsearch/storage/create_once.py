"""Writes of an object only where there is none, decided by the server: Arrow (26) cannot ask for them, obstore can."""

import contextlib
import logging
import secrets
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from ekgsearch.storage.files import PARTIAL_SUFFIX
from ekgsearch.storage.secrets import redact

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_TIMEOUT = timedelta(seconds=30)
_SCHEMES = frozenset({"s3", "gs"})


def warn_of_looking_first(uri: str, reason: str) -> None:
    """Log that a store has no create-once writes, and what that means for a memory bank.

    Args:
        uri: address of the store.
        reason: why it has none.
    """
    _log.warning(
        "%s: no create-once writes (%s), so an object is looked for before it is written; if two runs complete the "
        "same memory bank at the same moment, the manifest of the later one stays, which is whole as well",
        uri,
        reason,
    )


class ConditionalWriter:
    """One conditional request (`If-None-Match: *`) per object, of which a server lets exactly one through per key.

    The client is the package obstore. It finds credentials in the environment and in the machine's role, but
    not in profiles.
    """

    def __init__(self, uri: str) -> None:
        """Remember an address; nothing is opened yet.

        Args:
            uri: address of the store, see `ekgsearch.storage.objects.open_store`.
        """
        self._uri = uri

    @cached_property
    def _bucket(self) -> Any:
        """Open the bucket.

        Raises:
            ImportError: obstore is not installed.
        """
        from obstore.store import GCSStore, S3Store

        parts = urlsplit(self._uri)
        options = dict(parse_qsl(parts.query))
        retry: Any = {"max_retries": 1, "retry_timeout": _TIMEOUT}
        endpoint = options.get("endpoint_override", "")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        client: Any = {"timeout": _TIMEOUT, "allow_http": endpoint.startswith("http://")}
        if parts.scheme == "gs":
            if endpoint:
                raise ValueError("create-once writes to Google Cloud at another endpoint")
            return GCSStore(parts.netloc, client_options=client, retry_config=retry)
        found: Any = {
            name: value for name, value in (("region", options.get("region")), ("endpoint", endpoint)) if value
        }
        return S3Store(parts.netloc, client_options=client, retry_config=retry, **found)

    def create(self, path: str, data: bytes | bytearray | memoryview) -> bool:
        """Write an object unless there is one.

        Args:
            path: path within the bucket.
            data: the whole content.

        Returns:
            Whether it was written.

        Raises:
            OSError: the server cannot be reached or refuses; `PermissionError` where it always will.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                self._bucket.put(path, bytes(data), mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return _translated(put)

    def reason_against(self, prefix: str) -> str:
        """Find out whether the server keeps to the condition; one common server ignores it and lets every writer win.

        Args:
            prefix: folder in the bucket where an object may be written for a moment.

        Returns:
            Why create-once writes cannot be used here; empty if they can.

        Raises:
            OSError: the server cannot be reached for the moment.
        """
        scheme = urlsplit(self._uri).scheme
        if scheme not in _SCHEMES:
            return f"addresses of the kind {scheme or 'file'}:// have none"
        probe = f"{prefix}/.{secrets.token_hex(8)}{PARTIAL_SUFFIX}".lstrip("/")
        try:
            try:
                is_first, is_second = self.create(probe, b"1"), self.create(probe, b"2")
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    _translated(lambda: self._bucket.delete(probe))
                raise
            _translated(lambda: self._bucket.delete(probe))
        except ImportError:
            return "the package obstore is not installed"
        except (PermissionError, ValueError) as error:
            return str(error)
        return "" if is_first and not is_second else "the server ignores the condition If-None-Match"


def _translated(action: Callable[[], _Result]) -> _Result:
    """Raise the client's errors as the system's, without the texts in which it repeats the key and the signature."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        return action()
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(_first_line(error)) from None
    except BaseError as error:
        raise OSError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0].partition("<?xml")[0]
    return redact(text)
