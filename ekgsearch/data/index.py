"""Verifying every picture of a folder once: which files are sound, of which class, and with which content."""

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ekgsearch.data.cache import cached_json, locked, source_key
from ekgsearch.data.decode import MAX_BYTES, examine
from ekgsearch.data.limit import ALL, Limit
from ekgsearch.errors import DataError

logger = logging.getLogger(__name__)

_NUM_NAMED = 5
LOG_SECONDS = 15.0
"""How often a long verification says how far it is."""

Check = tuple[str] | tuple[str, str, int, int, bool]
"""Why a file is unusable, or an empty text and what is known of the picture."""


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """A picture that was decoded without complaint.

    Attributes:
        path: path inside the split folder, with forward slashes.
        label: position of its class folder in alphabetical order.
        sha256: checksum (hex) of the file.
        height: of the upright picture, pixels.
        width: of the upright picture, pixels.
        plain: whether every decoder makes the same of it, see `decode.examine`.
    """

    path: str
    label: int
    sha256: str
    height: int
    width: int
    plain: bool


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that is no usable picture, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """What is in a split folder.

    Attributes:
        folder: the split folder.
        class_names: names of the class folders, in alphabetical order.
        images: sound pictures, ordered by path.
        bad: the other files, ordered by path.
    """

    folder: Path
    class_names: tuple[str, ...]
    images: tuple[IndexedImage, ...]
    bad: tuple[BadFile, ...]

    def check_bad(self, max_bad: int, limit: Limit = ALL) -> None:
        """Accept a number of bad files with a warning.

        Args:
            max_bad: how many.
            limit: which files were verified.

        Raises:
            DataError: there are more; the first ones are named with their reasons. Or a class has no sound picture.
        """
        if not self.bad:
            return
        named = "; ".join(f"{file.path}: {file.reason}" for file in self.bad[:_NUM_NAMED])
        rest = f"; and {len(self.bad) - _NUM_NAMED} more" if len(self.bad) > _NUM_NAMED else ""
        message = f"{self.folder}: {len(self.bad)} files are no usable pictures ({named}{rest})"
        if len(self.bad) > max_bad:
            raise DataError(f"{message}; at most {max_bad} are allowed here: mend or remove them")
        sound = {image.label for image in self.images}
        wanted = self.class_names[: limit.classes]
        if empty := [name for label, name in enumerate(wanted) if label not in sound]:
            raise DataError(
                f"{message}, and no usable one is left of the class {_named(empty)}; "
                "mend its pictures, or remove the class from every split"
            )
        logger.warning("%s; they are left out", message)


def index_images(folder: Path, *, num_threads: int, limit: Limit = ALL) -> ImageIndex:
    """Verify the pictures of a split folder, which holds one folder per class; remembered until a file changes.

    Hidden files (and the `._*` files of macOS) are skipped. Of the processes of a machine that need the same folder at
    once, one verifies and the others wait.

    Args:
        folder: the split folder.
        num_threads: pictures decoded at once.
        limit: which files are verified; the others are not in the index, their classes are.

    Raises:
        DataError: there are no class folders, one is empty or has folders inside, or a name is not UTF-8.
    """
    class_names = class_folders(folder)
    chosen = class_names[: limit.classes]
    paths = [path for name in chosen for path in _class_files(folder / name)[: limit.images]]
    logger.info("%s: %d files in %d classes", folder, len(paths), len(chosen))
    key = source_key("image-index", paths)
    with locked(key, f"verifying the pictures of {folder}", required=False):
        checks = cached_json(key, lambda: _check_all(paths, num_threads))
    labels = {name: label for label, name in enumerate(class_names)}
    images, bad = [], []
    for path, (reason, *facts) in zip(paths, checks, strict=True):
        name = path.relative_to(folder).as_posix()
        if reason:
            bad.append(BadFile(name, reason))
        else:
            images.append(IndexedImage(name, labels[path.parent.name], *facts))
    return ImageIndex(folder, class_names, tuple(images), tuple(bad))


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders of a split folder, in alphabetical order.

    Raises:
        DataError: the folder is missing or has none, as an unsorted validation set, a name is not UTF-8, or an entry is
            a link to nothing, which may have been a class.
    """
    if not folder.is_dir():
        raise DataError(f"expected a folder with one folder per class at {folder}, found none")
    entries = _visible(folder)
    dangling = [path.name for path in entries if path.is_symlink() and not path.exists()]
    if dangling:
        raise DataError(
            f"{folder}: expected one folder per class, found links to nothing, {_named(dangling)}; "
            "restore the folders they name, or remove the links"
        )
    names = tuple(path.name for path in entries if path.is_dir())
    if not names:
        raise DataError(
            f"{folder}: expected one folder per class, found {len(entries)} files and no folder; "
            "sort the pictures by class"
        )
    return names


def check_same_classes(first: Path, second: Path) -> None:
    """Compare the class folders of two splits.

    Raises:
        DataError: they differ; the difference is named.
    """
    ours, theirs = set(class_folders(first)), set(class_folders(second))
    if ours != theirs:
        raise DataError(
            f"{first} has {len(ours)} class folders and {second} has {len(theirs)}: "
            f"only in the first {_named(ours - theirs)}; only in the second {_named(theirs - ours)}"
        )


def _class_files(folder: Path) -> list[Path]:
    paths = _visible(folder)
    nested = [path.name for path in paths if path.is_dir()]
    if nested:
        raise DataError(
            f"{folder}: expected pictures only, found folders {_named(nested)}; "
            "a class is one folder without folders inside"
        )
    if not paths:
        raise DataError(f"{folder}: the class has no pictures; add some or remove the folder from every split")
    return paths


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, by name; hidden files are skipped."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder that can be read, found that it cannot: {error.strerror}"
        ) from error
    bad = [repr(os.fsencode(path.name)) for path in paths if not _is_text(path.name)]
    if bad:
        raise DataError(f"{folder}: expected names in UTF-8, found {_named(bad)}; rename them")
    return paths


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_all(paths: Sequence[Path], num_threads: int) -> list[Check]:
    start = logged = time.monotonic()
    checks = []
    with ThreadPoolExecutor(num_threads, thread_name_prefix="verify") as pool:
        for number, check in enumerate(pool.map(_check_file, paths), start=1):
            checks.append(check)
            if time.monotonic() - logged > LOG_SECONDS:
                logged = time.monotonic()
                rate = number / (logged - start)
                logger.info("verified %d of %d pictures, %.0f per second", number, len(paths), rate)
    return checks


def _check_file(path: Path) -> Check:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for a writer for ever
            return ("it is no regular file",)
        if status.st_size > MAX_BYTES:
            return (f"the file has {status.st_size} bytes, at most {MAX_BYTES} are read",)
        return check_picture(path.read_bytes())
    except FileNotFoundError:
        return ("it is a link to a file that is not there" if path.is_symlink() else "it is gone",)
    except OSError as error:
        return (f"it cannot be read: {error.strerror}",)


def check_picture(data: bytes) -> Check:
    """Decode a picture and note what `IndexedImage` keeps of it.

    Returns:
        An empty text, checksum, height, width and whether it is plain; of an unusable picture the reason alone.
    """
    try:
        picture, plain = examine(data)
    except DataError as error:
        return (str(error),)
    return "", hashlib.sha256(data).hexdigest(), picture.height, picture.width, plain


def _named(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = f" and {len(ordered) - _NUM_NAMED} more" if len(ordered) > _NUM_NAMED else ""
    return (", ".join(ordered[:_NUM_NAMED]) or "none") + rest
