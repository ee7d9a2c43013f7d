"""How S3, Google Cloud and every other file system that Arrow opens serves as a store of objects."""

import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs

from ekgsearch.errors import StorageError
from ekgsearch.storage.answers import is_lasting, meaning
from ekgsearch.storage.create_once import ConditionalWriter, warn_of_looking_first
from ekgsearch.storage.files import PARTIAL_SUFFIX
from ekgsearch.storage.keys import check_key
from ekgsearch.storage.secrets import redact

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# Arrow file systems in which an upload by one request appears at once. Larger uploads go in parts, and Arrow (26) puts
# a shorter object in place when one of its requests fails and the stream is closed: apache/arrow issue 40502.
_ONE_REQUEST_SYSTEMS = frozenset({"s3", "gcs", "abfs"})
_ONE_REQUEST_BYTES = 8 << 20  # below the 10 MB from which Arrow (26) uploads in parts


class ArrowStore:
    """Objects of any file system that Arrow opens: S3 and its kin, Google Cloud, Azure, HDFS.

    Requests that fail are repeated with growing pauses; missing objects and refused permissions are not.
    """

    def __init__(
        self,
        filesystem: pyarrow.fs.FileSystem,
        root: str,
        *,
        uri: str,
        num_attempts: int = 6,
        first_delay_seconds: float = 0.5,
        writer: ConditionalWriter | None = None,
    ) -> None:
        """Wrap a file system.

        Args:
            filesystem: opened file system.
            root: folder or ``bucket/prefix`` in it.
            uri: address without credentials, for messages and for other machines.
            num_attempts: how often a request is made at most, beside the repetitions of the provider's own client.
            first_delay_seconds: pause before the first repetition, seconds; every further one is twice as long.
            writer: for create-once writes; None where there is nothing that could make them.
        """
        self._filesystem = filesystem
        self._root = root
        self._uri = uri
        self._num_attempts = num_attempts
        self._first_delay_seconds = first_delay_seconds
        self._writer = writer

    @property
    def uri(self) -> str:
        """Address without credentials."""
        return self._uri

    def check_reachable(self) -> None:
        """Ask for the bucket, so that a wrong address or missing permission shows before any work.

        Raises:
            StorageError: the bucket is missing or the provider refuses.
        """
        bucket = self._root.partition("/")[0]
        try:
            info = self._try("reach", "", lambda: self._filesystem.get_file_info(bucket))
        except StorageError:
            self.sizes(".reach/")  # fails with the reason, which the answer to the first request cannot hold (HEAD)
            raise
        if info.type == pyarrow.fs.FileType.NotFound:
            raise StorageError(
                f"the store {self._uri} has no bucket {bucket!r}; make it, or correct the address in the job"
            )

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole object: by one request where that is enough, else under a temporary name and a rename."""
        path = self._path(key)
        partial = f"{path.rpartition('/')[0]}/.{secrets.token_hex(8)}{PARTIAL_SUFFIX}"  # one for all attempts
        self._try("write", key, lambda: self._write(path, partial, data))

    def create(self, key: str, data: bytes | bytearray | memoryview) -> bool:
        """Write a whole object unless another is there: by one conditional request, else by looking first."""
        path = self._path(key)
        if self.creates_once and self._writer is not None:
            writer, below = self._writer, path.partition("/")[2]
            was_written = self._try("create", key, lambda: writer.create(below, data))
        else:
            was_written = not self.exists(key)
            if was_written:
                self.put(key, data)
        return was_written or self.get(key) == bytes(data)  # equal: the answer to an attempt that succeeded got lost

    @cached_property
    def creates_once(self) -> bool:
        """Whether `create` is one act of the server; tried out when it is first asked for."""
        writer, prefix = self._writer, self._root.partition("/")[2]
        reason = "nothing here can ask for them"
        if writer is not None:
            try:
                reason = self._try("try out create-once writes in", "", lambda: writer.reason_against(prefix))
            except StorageError as error:
                reason = str(error)
        if reason:
            warn_of_looking_first(self._uri, reason)
        return not reason

    def get(self, key: str) -> bytes:
        """Read a whole object by one ranged read, which is many times faster on S3 than a stream."""
        path = self._path(key)
        return self._try("read", key, lambda: self._read(path))

    def exists(self, key: str) -> bool:
        """Whether there is an object under the key."""
        return bool(self._info(key).is_file)

    def size(self, key: str) -> int:
        """Bytes of an object."""
        info = self._info(key)
        if not info.is_file:
            raise StorageError(
                f"{key!r} does not exist in {self._uri}; expected an object that an earlier step has written"
            )
        return int(info.size)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the objects whose keys begin with a text, asked for below the last ``/`` of it."""
        folder = prefix.rpartition("/")[0]
        base = self._path(folder) if folder else self._root
        selector = pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True)
        infos = self._try("list", prefix, lambda: self._filesystem.get_file_info(selector))
        found = {info.path.removeprefix(self._root).lstrip("/"): int(info.size) for info in infos if info.is_file}
        wanted = (key for key in sorted(found) if key.startswith(prefix) and not key.endswith(PARTIAL_SUFFIX))
        return {key: found[key] for key in wanted}

    def list(self, prefix: str = "") -> list[str]:
        """Keys that begin with a text, sorted."""
        return list(self.sizes(prefix))

    def delete(self, key: str) -> None:
        """Remove an object."""
        path = self._path(key)
        if self.exists(key):
            self._try("remove", key, lambda: self._filesystem.delete_file(path))

    def free_bytes(self) -> int | None:
        """Unknown here."""
        return None

    def _path(self, key: str) -> str:
        check_key(key)
        return f"{self._root}/{key}"

    def _info(self, key: str) -> pyarrow.fs.FileInfo:
        path = self._path(key)
        return self._try("look up", key, lambda: self._filesystem.get_file_info(path))

    def _write(self, path: str, partial: str, data: bytes | bytearray | memoryview) -> None:
        has_requests = self._filesystem.type_name in _ONE_REQUEST_SYSTEMS
        if has_requests and memoryview(data).nbytes <= _ONE_REQUEST_BYTES:
            self._upload(path, data)
            return
        if not has_requests:
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        try:
            self._upload(partial, data)
            self._filesystem.move(partial, path)
        except BaseException:
            with contextlib.suppress(pa.ArrowException, OSError):  # the first error is the one to report
                self._filesystem.delete_file(partial)
            raise

    def _upload(self, path: str, data: bytes | bytearray | memoryview) -> None:
        stream = self._filesystem.open_output_stream(path, compression=None)
        try:
            with stream:
                stream.write(data)
        finally:
            del stream  # its end may still put an object in place, which has to happen before the caller removes it

    def _read(self, path: str) -> bytes:
        with self._filesystem.open_input_file(path) as file:
            data: bytes = file.read_at(file.size(), 0)
        return data

    def _try(self, verb: str, key: str, action: Callable[[], _Result]) -> _Result:
        """Do something with the store, again after a pause where it fails for a moment."""
        place = f"{key!r} in {self._uri}" if key else self._uri
        delay = self._first_delay_seconds
        for attempt in range(1, self._num_attempts + 1):
            try:
                return action()
            except FileNotFoundError as error:
                raise StorageError(f"cannot {verb} {place}: it does not exist") from error
            except (pa.ArrowException, OSError) as error:
                reason = redact(str(error))
                if attempt == self._num_attempts or is_lasting(error):
                    words = "; the store said: ".join(filter(None, (meaning(reason), reason)))
                    raise StorageError(f"cannot {verb} {place} after {attempt} attempts: {words}") from error
                _log.warning("cannot %s %s (attempt %d of %d): %s", verb, place, attempt, self._num_attempts, reason)
            time.sleep(delay)
            delay *= 2
        raise StorageError(f"cannot {verb} {place}: expected at least 1 attempt, found {self._num_attempts}")
