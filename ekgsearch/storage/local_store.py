"""How a folder serves as a store of objects."""

import contextlib
import os
from functools import cached_property
from pathlib import Path

from ekgsearch.errors import StorageError
from ekgsearch.storage.create_once import warn_of_looking_first
from ekgsearch.storage.files import PARTIAL_SUFFIX, can_link, free_bytes, make_folder, read_bytes, write_atomically
from ekgsearch.storage.keys import check_key
from ekgsearch.storage.paths import inside


class LocalStore:
    """Objects as files of a folder."""

    def __init__(self, root: Path, *, create: bool = True) -> None:
        """Open a folder.

        Args:
            root: folder of the objects.
            create: whether it is made where it is missing.

        Raises:
            StorageError: the folder is missing or cannot be made.
        """
        self._root = root.absolute()
        if create:
            make_folder(self._root)
        self._check_root()

    @property
    def uri(self) -> str:
        """Path of the folder."""
        return str(self._root)

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write a whole object in two phases."""
        path = self._path(key)
        self._make_folder(path.parent)
        write_atomically(path, data)

    def create(self, key: str, data: bytes | bytearray | memoryview) -> bool:
        """Write a whole object unless another is there: the file system lets one writer win, or by looking first."""
        path = self._path(key)
        self._make_folder(path.parent)
        if not self.creates_once:
            if not self.exists(key):
                self.put(key, data)
            return self.get(key) == bytes(data)
        try:
            write_atomically(path, data, replace=False)
        except StorageError:
            if not path.exists():
                raise
            return self.get(key) == bytes(data)
        return True

    @cached_property
    def creates_once(self) -> bool:
        """Whether the file system links a name once; tried out when it is first asked for."""
        self._check_root()
        is_able = can_link(self._root)
        if not is_able:
            warn_of_looking_first(self.uri, "the file system has no hard links")
        return is_able

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return read_bytes(self._path(key))

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        path = self._path(key)
        self._check_root()
        return path.is_file()

    def size(self, key: str) -> int:
        """Bytes of the file."""
        path = self._path(key)
        try:
            return path.stat().st_size
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the whole files whose keys begin with a text, looked for below the last ``/`` of it."""
        self._check_root()
        start = prefix.rpartition("/")[0]
        found = {}
        for folder, _, names in os.walk(self._path(start) if start else self._root):
            below = Path(folder).relative_to(self._root)
            for key in ((below / name).as_posix() for name in names):
                if key.startswith(prefix) and not key.endswith(PARTIAL_SUFFIX):
                    with contextlib.suppress(FileNotFoundError):  # removed since the folder was read
                        found[key] = (self._root / key).stat().st_size
        return dict(sorted(found.items()))

    def list(self, prefix: str = "") -> list[str]:
        """Keys of the whole files below the folder."""
        return list(self.sizes(prefix))

    def delete(self, key: str) -> None:
        """Remove the file."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error

    def free_bytes(self) -> int | None:
        """Bytes free on the disk of the folder."""
        return free_bytes(self._root)

    def _path(self, key: str) -> Path:
        check_key(key)
        return inside(self._root, key)

    def _make_folder(self, folder: Path) -> None:
        self._check_root()
        make_folder(folder)

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise StorageError(f"the store {self._root} is no folder (was it removed?); expected a folder of objects")
