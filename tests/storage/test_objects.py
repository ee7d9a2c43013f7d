"""One contract for all stores: folders, and whatever Arrow opens."""

import errno
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from object_storage import FaultProxy

from ekgsearch.errors import StorageError
from ekgsearch.storage.arrow_store import ArrowStore
from ekgsearch.storage.local_store import LocalStore
from ekgsearch.storage.objects import ObjectStore, open_store


class ObjectStoreContract:
    """What every store keeps to; subclasses give the store."""

    def test_what_was_put_is_read_whole(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * 100
        store.put("bank/0001", data)
        assert store.get("bank/0001") == data
        assert store.size("bank/0001") == len(data)
        assert store.exists("bank/0001")

    def test_all_kinds_of_bytes_are_taken(self, store: ObjectStore) -> None:
        for data in (b"", bytearray(b"array"), memoryview(b"view")):
            store.put("a", data)
            assert store.get("a") == bytes(data)

    def test_a_second_put_replaces_the_first(self, store: ObjectStore) -> None:
        store.put("a", b"long first value")
        store.put("a", b"second")
        assert store.get("a") == b"second"
        assert store.list() == ["a"]

    def test_a_created_object_stays(self, store: ObjectStore) -> None:
        assert store.create("bank/once", b"first")
        assert not store.create("bank/once", b"other")
        assert store.create("bank/once", bytearray(b"first"))
        assert store.get("bank/once") == b"first"
        assert store.sizes() == {"bank/once": 5}

    def test_missing_objects_are_errors_that_name_store_and_key(self, store: ObjectStore) -> None:
        for action in (lambda: store.get("none/here"), lambda: store.size("none/here")):
            with pytest.raises(StorageError, match="none/here") as caught:
                action()
            assert store.uri in str(caught.value)
        assert not store.exists("none/here")
        assert not store.exists("none")
        store.delete("none/here")

    def test_keys_are_listed_sorted_by_prefix(self, store: ObjectStore) -> None:
        for key in ("bank/b", "bank/a", "bank/deep/x", "bank2", "z", "bank/.hidden"):
            store.put(key, b"1")
        assert store.list() == ["bank/.hidden", "bank/a", "bank/b", "bank/deep/x", "bank2", "z"]
        assert store.list("bank/") == ["bank/.hidden", "bank/a", "bank/b", "bank/deep/x"]
        assert store.list("bank/deep/x") == ["bank/deep/x"]
        assert store.list("bank") == ["bank/.hidden", "bank/a", "bank/b", "bank/deep/x", "bank2"]
        assert store.list("nothing/") == []

    def test_a_deleted_object_is_gone(self, store: ObjectStore) -> None:
        store.put("d/a", b"1")
        store.put("d/b", b"1")
        store.delete("d/a")
        assert not store.exists("d/a")
        assert store.list() == ["d/b"]

    @pytest.mark.parametrize(
        "key", ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/", "a\0b", "\ud800", "a/.x.partial"]
    )
    def test_keys_that_lead_out_or_are_ambiguous_are_refused(self, store: ObjectStore, key: str) -> None:
        for action in (store.get, store.exists, store.size, store.delete, lambda key: store.put(key, b"x")):
            with pytest.raises(StorageError, match="expected"):
                action(key)

    def test_concurrent_writers_leave_one_whole_object(self, store: ObjectStore) -> None:
        values = [bytes([number]) * 100_000 for number in range(4)]
        threads = [threading.Thread(target=store.put, args=("shared/key", value)) for value in values]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.get("shared/key") in values
        assert store.list() == ["shared/key"]

    def test_the_address_opens_the_same_store(self, store: ObjectStore) -> None:
        store.put("a", b"1")
        assert open_store(store.uri).get("a") == b"1"


class TestLocalStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return open_store(str(tmp_path / "store"))

    def test_of_writers_at_the_same_moment_one_creates(self, store: ObjectStore) -> None:
        with ThreadPoolExecutor(8) as writers:
            wins = list(writers.map(lambda number: store.create("only", bytes([number]) * 1000), range(64)))
        assert wins.count(True) == 1
        assert store.get("only") == bytes([wins.index(True)]) * 1000


class TestLocalStoreWithoutLinks(ObjectStoreContract):
    """As on exFAT and on some network and FUSE mounts."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
        return without_links(tmp_path / "store", monkeypatch, errno.EPERM)


def without_links(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> ObjectStore:
    """A store in a folder where hard links are refused with an error number."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    return open_store(str(root))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_folder_without_hard_links_is_found_out_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    store = without_links(tmp_path, monkeypatch, number)
    assert store.create("a", b"1")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert not store.creates_once
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert store.get("a") == b"1"
    assert caplog.text.count("no create-once writes (the file system has no hard links)") == 1


def test_a_folder_where_nothing_can_be_written_is_not_taken_for_one_without_links(read_only_disk: Path) -> None:
    store = LocalStore(read_only_disk)
    assert store.creates_once
    assert store.create("kept", b"old")
    with pytest.raises(StorageError, match="read-only"):
        store.create("new", b"")


def test_a_list_below_a_prefix_looks_into_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    for key in ("bank/one/block-1", "bank/one/block-2", "bank/one/deep/x", "bank/two/block-1", "tables/rows"):
        store.put(key, b"1")
    scan, seen = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda folder: seen.append(str(folder)) or scan(folder))
    assert store.list("bank/one/block-") == ["bank/one/block-1", "bank/one/block-2"]
    assert seen
    assert all(folder.startswith(f"{tmp_path}/bank/one") for folder in seen)
    assert store.list("nowhere/block-") == []


def test_a_file_that_vanishes_during_a_listing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.put("here", b"1")
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top: [(at, below, [*names, "gone"]) for at, below, names in walk(top)])
    assert store.sizes() == {"here": 1}


class TestArrowStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        root = tmp_path / "store"
        root.mkdir()
        return ArrowStore(pyarrow.fs.LocalFileSystem(), str(root), uri=str(root), first_delay_seconds=0.01)


def test_every_pause_before_a_repetition_is_twice_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    class Broken:
        """A file system that fails in a way that may pass."""

        def get_file_info(self, path: str) -> None:
            raise OSError(errno.EIO, "for a moment")

    store = ArrowStore(Broken(), "bucket", uri="u", num_attempts=4, first_delay_seconds=0.5)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="cannot look up 'a' in u after 4 attempts"):
        store.exists("a")
    assert pauses == [0.5, 1.0, 2.0]


class TestS3Store(ObjectStoreContract):
    @pytest.fixture
    def store(self, s3_server: FaultProxy) -> ObjectStore:
        return open_store(s3_server.store_uri)


def gcs_uri(port: int, path: str) -> str:
    return f"gs://{path}?endpoint_override=127.0.0.1:{port}&scheme=http&anonymous=true&retry_limit_seconds=2"


class TestGcsStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, gcs_port: int) -> ObjectStore:
        return open_store(gcs_uri(gcs_port, f"bucket/runs/{secrets.token_hex(4)}"))


def test_a_missing_bucket_of_google_cloud_is_named(gcs_port: int) -> None:
    with pytest.raises(StorageError, match="has no bucket 'bocket'"):
        open_store(gcs_uri(gcs_port, "bocket/runs"))


def test_file_addresses_are_folders(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/with%20space").put("a", b"1")
    assert (tmp_path / "with space" / "a").read_bytes() == b"1"


def test_a_missing_folder_is_an_error_where_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is no folder"):
        open_store(str(tmp_path / "none"), create=False)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/below: a part of its path is no folder"):
        open_store(str(tmp_path / "file" / "below"))


def test_a_folder_that_vanishes_is_an_error_and_not_made_anew(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "store").rmdir()
    for action in (lambda: store.put("a", b""), lambda: store.exists("a"), store.list):
        with pytest.raises(StorageError, match=r"store is no folder \(was it removed\?\)"):
            action()
    assert not (tmp_path / "store").exists()


def test_unfinished_files_of_killed_writers_are_no_objects(tmp_path: Path) -> None:
    (tmp_path / ".0123.partial").write_bytes(b"half")
    store = open_store(str(tmp_path))
    assert store.list() == []
    assert ArrowStore(pyarrow.fs.LocalFileSystem(), str(tmp_path), uri="x").list() == []


def test_links_that_lead_out_of_the_store_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    store = open_store(str(tmp_path / "store"))
    os.symlink(tmp_path, tmp_path / "store" / "out")
    for action in (store.get, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(StorageError, match="link that leads out"):
            action("out/secret")
    assert (tmp_path / "secret").read_text() == "canary"
    assert store.list() == []


def test_a_full_disk_is_named_and_keeps_the_old_object(small_disk: Path) -> None:
    store = open_store(str(small_disk / "store"))
    store.put("a", b"old")
    free = store.free_bytes()
    assert free is not None
    assert free <= 1 << 20
    with pytest.raises(StorageError, match="no space is left"):
        store.put("a", bytes(1 << 21))
    arrow = ArrowStore(pyarrow.fs.LocalFileSystem(), str(small_disk / "store"), uri="arrow")
    with pytest.raises(StorageError, match="cannot write 'a' in arrow after 1 attempts"):
        arrow.put("a", bytes(1 << 21))
    assert store.get("a") == b"old"


def test_a_read_only_disk_is_named(read_only_disk: Path) -> None:
    store = LocalStore(read_only_disk)
    assert store.get("kept") == b"old"
    for action in (lambda: store.put("a", b""), lambda: store.put("b/c", b""), lambda: store.delete("kept")):
        with pytest.raises(StorageError, match=r"[Rr]ead-only"):
            action()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:canary-secret@bucket/prefix",
        "s3://bucket/prefix?secret_key=canary-secret",
        "gs://canary-secret@bucket/prefix",
    ],
)
def test_credentials_in_an_address_are_refused_without_repeating_them(uri: str) -> None:
    with pytest.raises(StorageError, match="holds credentials") as caught:
        open_store(uri)
    assert "canary" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize("uri", ["ftp://host/path", "s3://bucket/p?colour=red", "s3:///none", "https://host/bucket"])
def test_addresses_that_are_not_understood_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=r"cannot open the store|has options|names no bucket"):
        open_store(uri)


@given(name=st.text(max_size=20))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_key_is_refused_or_comes_back_as_it_is(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    store = open_store(str(tmp_path_factory.getbasetemp() / "any_keys"))
    try:
        store.put(name, b"x")
    except StorageError:
        return
    assert store.list() == [name]
    store.delete(name)
