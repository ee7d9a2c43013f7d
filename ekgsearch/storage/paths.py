"""How a name from outside becomes a path: through one function that lets nothing lead out of its root."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from ekgsearch.errors import StorageError


def inside(root: Path, name: str) -> Path:
    """Join a relative name to a root folder, refusing every name that would lead out of it.

    The root itself may be a link and need not exist. Links below it are followed, and refused where they end outside.

    Args:
        root: folder that the result must lie in.
        name: relative name with ``/`` between its parts.

    Returns:
        ``root / name``, not resolved.

    Raises:
        StorageError: the name is empty, absolute (POSIX or Windows), holds ``..``, NUL or text that is no valid
            Unicode, names the root itself, or passes a link that leads out of the root.
    """
    reason = _reason_to_refuse(name)
    if reason:
        raise StorageError(
            f"name {name!r} {reason}; expected a relative name below {root}, such as 'tables/rows.parquet'"
        )
    path = root / name
    real_root, real_path = os.path.realpath(root), os.path.realpath(path)
    if os.path.commonpath([real_root, real_path]) != real_root:
        raise StorageError(
            f"name {name!r} passes a link that leads out of {root} (to {real_path}); remove the link or move the root"
        )
    return path


def check_name(name: str) -> None:
    """Refuse a name that would lead out of whatever folder or bucket it is used in.

    Args:
        name: name with ``/`` between its parts.

    Raises:
        StorageError: the name is empty, absolute (POSIX or Windows), holds ``..`` or NUL, or is no valid
            Unicode.
    """
    reason = _reason_to_refuse(name)
    if reason:
        raise StorageError(f"name {name!r} {reason}; expected a relative name such as 'tables/rows.parquet'")


def _reason_to_refuse(name: str) -> str:
    """Say in words what is wrong with a name, or return an empty text."""
    if "\0" in name:
        return "holds a NUL character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is no valid Unicode text"
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or windows.root:
        return "is an absolute path"
    if ".." in PurePosixPath(name).parts or ".." in windows.parts:
        return "holds '..'"
    if not PurePosixPath(name).parts:
        return "names no file"
    return ""
