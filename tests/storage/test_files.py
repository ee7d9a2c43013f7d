"""A file is old or new, never between; a disk that refuses is described."""

import errno
import hashlib
import os
import resource
import signal
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ekgsearch.errors import StorageError
from ekgsearch.storage.files import (
    file_sha256,
    free_bytes,
    make_folder,
    read_bytes,
    remove_partials,
    write_atomically,
)


def test_a_file_is_written_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(path, memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]
    assert file_sha256(path) == hashlib.sha256(b"new").hexdigest()


@pytest.mark.parametrize("replace", [True, False])
def test_bytes_are_on_the_disk_before_their_name_and_the_name_before_the_return(
    tmp_path: Path, disk_calls: list[str], replace: bool
) -> None:
    write_atomically(tmp_path / "a", b"new", replace=replace)
    named = "replace a" if replace else "link a"
    assert disk_calls == ["write PARTIAL", "fsync PARTIAL", named, f"fsync {tmp_path.name}"]


def test_the_names_of_new_folders_are_on_the_disk(tmp_path: Path, disk_calls: list[str]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert disk_calls == [f"fsync {tmp_path.name}", "fsync a"]
    make_folder(tmp_path / "a" / "b")
    assert len(disk_calls) == 2


def test_a_disk_that_fails_to_sync_a_folder_is_named_and_one_that_cannot_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, sync = [0], os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(numbers[0], os.strerror(numbers[0]))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    numbers[0] = errno.EINVAL
    write_atomically(tmp_path / "a", b"new")
    make_folder(tmp_path / "b")
    numbers[0] = errno.EIO
    with pytest.raises(StorageError, match=r"cannot write .*/a: Input/output error"):
        write_atomically(tmp_path / "a", b"newer")
    with pytest.raises(StorageError, match=r"cannot write .*/c: Input/output error"):
        make_folder(tmp_path / "c")


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_existing_file_stays_where_replacing_is_not_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"first", replace=False)
    with pytest.raises(StorageError, match="exists already"):
        write_atomically(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_a_vanished_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"gone/a: its folder does not exist.*3 bytes are needed, \d+ bytes are free"
    ):
        write_atomically(tmp_path / "gone" / "a", b"abc")


def test_a_part_of_the_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="no folder"):
        write_atomically(tmp_path / "file" / "a", b"abc")


def test_a_full_disk_is_named_with_sizes_and_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "a.bin"
    write_atomically(path, b"old")
    with pytest.raises(StorageError, match=r"a\.bin: no space is left; 2000000 bytes are needed, \d+ bytes are free"):
        write_atomically(path, bytes(2_000_000))
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["a.bin"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_read_only_disk_is_named_and_keeps_the_old_file(read_only_disk: Path) -> None:
    with pytest.raises(StorageError, match="the file system is read-only"):
        write_atomically(read_only_disk / "kept", b"new")
    assert (read_only_disk / "kept").read_bytes() == b"old"


def test_a_file_size_limit_is_named_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="file size limit is reached"):
            write_atomically(path, bytes(1001))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_atomically(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_partial_files_of_killed_writers_are_removed_and_whole_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".0123.partial").write_bytes(b"x")
    (tmp_path / ".4567.partial").write_bytes(b"x")
    (tmp_path / "whole").write_bytes(b"x")
    assert remove_partials(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["sub", "whole"]


def test_young_partial_files_of_a_shared_folder_are_kept(tmp_path: Path) -> None:
    partials = [tmp_path / name / f".{number}.partial" for number, name in enumerate(("own", "bank/a", "bank/b"))]
    for path in partials:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    for path, hours in ((partials[1], 23), (partials[2], 25)):
        os.utime(path, (time.time() - hours * 3600,) * 2)
    assert remove_partials(tmp_path, shared=tmp_path / "bank") == 2
    assert [path.exists() for path in partials] == [False, True, False]


def test_a_folder_is_made_with_those_above_it_or_the_reason_is_named(tmp_path: Path, read_only_disk: Path) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    refused = {
        tmp_path / "file": "a file of its name is in the way",
        tmp_path / "file" / "a": "a part of its path is no folder",
        read_only_disk / "a": "the file system is read-only",
    }
    for folder, reason in refused.items():
        with pytest.raises(StorageError, match=f"cannot write {folder}: {reason}"):
            make_folder(folder)


def test_reading_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nothing\.json does not exist"):
        read_bytes(tmp_path / "nothing.json")
    with pytest.raises(StorageError, match=r"nothing\.json"):
        file_sha256(tmp_path / "nothing.json")


def test_free_bytes_are_blocks_for_ordinary_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(f_bavail=3, f_bfree=5, f_frsize=512, f_bsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda folder: answer)
    assert free_bytes(tmp_path) == 3 * 512


def test_free_bytes_of_a_folder_to_be_made_are_those_of_its_disk(small_disk: Path) -> None:
    free = free_bytes(small_disk / "not" / "yet")
    assert free is not None
    assert 0 < free <= 1 << 20
