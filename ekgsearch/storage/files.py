"""How a file is written so that a reader finds the old bytes or the new ones, and never anything between."""

import errno
import hashlib
import itertools
import os
import secrets
import time
from pathlib import Path

from ekgsearch.errors import StorageError

PARTIAL_SUFFIX = ".partial"
"""End of the names of files that are not yet whole; no reader may open one."""

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

_DAY_SECONDS = 24 * 3600

_FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file size limit is reached",
}
_REFUSED = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
    errno.ENOENT: "its folder does not exist (was it removed?)",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.ENAMETOOLONG: "its name is too long",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "a file of its name is in the way",
}


def write_atomically(path: Path, data: bytes | bytearray | memoryview, *, replace: bool = True) -> None:
    """Write a whole file in two phases: a temporary name beside it, fsync, rename, fsync of the folder.

    A crash at any moment leaves the old file or the new one. What it may leave behind besides is a ``.partial`` file,
    see `remove_partials`.

    Args:
        path: file to write; its folder must exist.
        data: the whole content.
        replace: whether a file that is already there is replaced.

    Raises:
        StorageError: the disk is full, read-only, or refuses; or the file exists and ``replace`` is false.
    """
    view = memoryview(data).cast("B")
    partial = path.with_name(f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    try:
        _write_whole(partial, view)
        if replace:
            os.replace(partial, path)
        else:
            os.link(partial, path)
            os.unlink(partial)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise StorageError(f"{path} exists already and is not replaced; choose another name or remove it") from error
    except OSError as error:
        raise write_error(path, error, view.nbytes) from error
    finally:
        _remove_quietly(partial)


def can_link(folder: Path) -> bool:
    """Try out whether files of a folder can have a second name, as `write_atomically` without ``replace`` needs.

    Args:
        folder: folder that exists; two ``.partial`` files are there for a moment.

    Returns:
        Whether they can; true also where nothing can be written at all, which the first write will say.
    """
    names = [folder / f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}" for _ in range(2)]
    try:
        _write_whole(names[0], memoryview(b""))
        os.link(*names)
    except OSError as error:
        return error.errno not in _NO_LINKS or not names[0].exists()
    finally:
        for name in names:
            _remove_quietly(name)
    return True


def _write_whole(path: Path, view: memoryview) -> None:
    """Create a file, write everything and wait until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_fully(descriptor, view)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_fully(descriptor: int, view: memoryview) -> None:
    """Write all bytes to an open file; the kernel may take fewer per call.

    Args:
        descriptor: file opened for writing.
        view: bytes to write.
    """
    written = 0
    while written < view.nbytes:
        written += os.write(descriptor, view[written:])


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing; their names are on the disk when this returns.

    Args:
        folder: folder to make.

    Raises:
        StorageError: the disk is full, read-only, or refuses; or a file of that name is in the way.
    """
    try:
        missing = list(itertools.takewhile(lambda one: not one.exists(), (folder, *folder.parents)))
        folder.mkdir(parents=True, exist_ok=True)
        for one in reversed(missing):
            sync_folder(one.parent)
    except OSError as error:
        raise write_error(folder, error, 0) from error


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, so that a rename survives a power cut.

    Args:
        folder: folder whose entries changed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder and say so with EINVAL
            raise
    finally:
        os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # renamed already, or on a disk that takes no change; the first error is the one to report


def write_error(path: Path, error: OSError, num_bytes: int) -> StorageError:
    """Put an operating system's refusal to write into words that name the file, its size and the free space.

    Args:
        path: file that was to be written.
        error: what the operating system said.
        num_bytes: bytes that were to be written.

    Returns:
        The error to raise ``from`` the given one.
    """
    free = free_bytes(path.parent)
    space = f"{num_bytes} bytes are needed, {'an unknown number' if free is None else free} bytes are free"
    if error.errno in _FULL:
        return StorageError(
            f"cannot write {path}: {_FULL[error.errno]}; {space}; free some and run the same command again"
        )
    reason = _REFUSED.get(error.errno or 0, f"{error.strerror or error}")
    return StorageError(
        f"cannot write {path}: {reason}; {space}; make the folder writable and run the same command again"
    )


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Args:
        path: file to read.

    Raises:
        StorageError: the file is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist; expected a file that an earlier step has written") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def free_bytes(folder: Path) -> int | None:
    """Bytes that an ordinary user may still write in a folder.

    Args:
        folder: folder that need not exist yet; the nearest existing parent is asked then.

    Returns:
        Free bytes, or None where the file system does not tell.
    """
    for candidate in (folder, *folder.absolute().parents):
        try:
            status = os.statvfs(candidate)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return status.f_bavail * status.f_frsize
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of the bytes of a file.

    Args:
        path: file to read.

    Raises:
        StorageError: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def remove_partials(folder: Path, *, shared: Path | None = None) -> int:
    """Remove what killed writers left behind in a folder and below; call it while nothing writes there.

    Args:
        folder: folder to clean, such as a run directory whose journal is held.
        shared: folder below it into which others may be writing all the same; what is younger than a day stays there.

    Returns:
        Number of ``.partial`` files removed.
    """
    partials = [path for path in folder.rglob(f".*{PARTIAL_SUFFIX}") if _is_left_behind(path, shared)]
    for path in partials:
        _remove_quietly(path)
    return len(partials)


def _is_left_behind(path: Path, shared: Path | None) -> bool:
    try:
        return path.is_file() and (shared not in path.parents or time.time() - path.stat().st_mtime > _DAY_SECONDS)
    except FileNotFoundError:
        return False  # its writer has just renamed it
