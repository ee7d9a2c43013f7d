"""The store over S3 (OpenStack Swift): requests are repeated, nothing is half there, errors say what to do."""

import gc
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.fs
import pytest
from object_storage import S3_KEY, S3_SECRET, FaultProxy, Swift, s3_uri

from ekgsearch.errors import StorageError
from ekgsearch.storage.arrow_store import ArrowStore
from ekgsearch.storage.objects import open_store

STALL_SECONDS = 1
"""So long the client waits for a byte before it gives a request up."""


def impatient(server: FaultProxy, num_attempts: int = 6) -> ArrowStore:
    """The store with short pauses and without the client's own repetitions, so that every fault reaches it."""
    filesystem = pyarrow.fs.S3FileSystem(
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{server.server_port}",
        allow_delayed_open=True,
        request_timeout=STALL_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    return ArrowStore(
        filesystem,
        f"bucket/{server.prefix}",
        uri=server.store_uri,
        num_attempts=num_attempts,
        first_delay_seconds=0.001,
    )


@pytest.fixture
def store(s3_server: FaultProxy) -> ArrowStore:
    return impatient(s3_server)


def test_a_small_object_is_one_request(s3_server: FaultProxy) -> None:
    store = open_store(s3_server.store_uri)
    s3_server.requests.clear()
    store.put("a", b"1")
    assert [request.split()[0] for request in s3_server.requests] == ["PUT"]
    s3_server.requests.clear()
    store.put("b", bytes(8 << 20))
    assert [request.split()[0] for request in s3_server.requests] == ["PUT"]
    assert open_store(s3_server.direct_uri).sizes() == {"a": 1, "b": 8 << 20}


SLOWER = [pytest.param(broken, marks=pytest.mark.slow) for broken in ("partNumber=1&", "?uploadId", "/shard")]


@pytest.mark.parametrize("broken", ["partNumber=2&", "?uploads", *SLOWER])
def test_a_shard_of_many_parts_appears_whole_or_not_at_all(
    s3_server: FaultProxy, store: ArrowStore, broken: str
) -> None:
    old, new = b"old", bytes(range(256)) * 4096 * 12
    store.put("shard", old)
    s3_server.broken = broken
    with pytest.raises(StorageError, match="after 6 attempts"):
        store.put("shard", new)
    gc.collect()
    s3_server.broken = ""
    assert store.get("shard") == old
    assert s3_server.raw_keys() == ["shard"]
    store.put("shard", new)
    assert any("?uploads" in request for request in s3_server.requests)
    assert store.get("shard") == new
    assert s3_server.raw_keys() == ["shard"]


def test_a_shard_that_cannot_be_renamed_leaves_at_most_one_unfinished_object(s3_server: FaultProxy) -> None:
    store = impatient(s3_server, num_attempts=2)
    s3_server.broken = "/shard"
    for refused, expected in (("", 0), ("DELETE", 1)):
        s3_server.refused = refused
        with pytest.raises(StorageError, match="after 2 attempts"):
            store.put("shard", bytes(12 << 20))
        assert [key.endswith(".partial") for key in s3_server.raw_keys()] == [True] * expected
        assert store.list() == []


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_every_request_outlives_passing_faults(s3_server: FaultProxy, store: ArrowStore, fault: str) -> None:
    faults = [fault] * 3
    s3_server.faults = faults.copy()
    store.put("a", b"0123456789")
    assert open_store(s3_server.direct_uri).get("a") == b"0123456789"
    for action, expected in (
        (lambda: store.get("a"), b"0123456789"),
        (lambda: store.exists("a"), True),
        (lambda: store.list(), ["a"]),
    ):
        s3_server.faults = faults.copy()
        assert action() == expected
        assert s3_server.faults == []
    s3_server.faults = faults.copy()
    store.delete("a")
    assert store.list() == []


def test_a_request_without_an_answer_is_made_again(s3_server: FaultProxy, store: ArrowStore) -> None:
    for action, expected in (
        (lambda: store.put("a", b"0123456789"), None),
        (lambda: store.get("a"), b"0123456789"),
        (lambda: store.exists("a"), True),
        (lambda: store.list(), ["a"]),
    ):
        s3_server.faults = ["stall"]
        s3_server.requests.clear()
        start = time.monotonic()
        assert action() == expected
        assert time.monotonic() - start >= STALL_SECONDS * 0.9
        assert s3_server.requests[0] == s3_server.requests[1]
    assert open_store(s3_server.direct_uri).get("a") == b"0123456789"


def test_a_server_that_never_answers_is_named_in_time(s3_server: FaultProxy) -> None:
    store = impatient(s3_server, num_attempts=3)
    s3_server.faults = ["stall"] * 100
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot read 'a' .* after 3 attempts: the store cannot be reached: check"):
        store.get("a")
    assert 3 * STALL_SECONDS * 0.9 <= time.monotonic() - start < 3 * STALL_SECONDS + 5
    assert len(s3_server.requests) == 3


def test_a_short_answer_is_not_taken_for_the_object(s3_server: FaultProxy, store: ArrowStore) -> None:
    store.put("a", bytes(100_000))
    s3_server.faults = ["", "cut"]
    assert store.get("a") == bytes(100_000)


def test_attempts_are_bounded_and_counted(
    s3_server: FaultProxy, store: ArrowStore, caplog: pytest.LogCaptureFixture
) -> None:
    s3_server.faults = ["503"] * 100
    with pytest.raises(StorageError, match=r"cannot write 'a' in s3://bucket/runs/.* after 6 attempts"):
        store.put("a", b"1")
    assert len(s3_server.requests) == 6
    assert "attempt 5 of 6" in caplog.text
    s3_server.faults = []
    assert s3_server.raw_keys() == []


def test_refused_permission_is_not_repeated(s3_server: FaultProxy, store: ArrowStore) -> None:
    for action in (lambda: store.put("a", b"1"), lambda: store.get("a"), store.list):
        s3_server.faults = ["403"] * 10
        with pytest.raises(StorageError, match="after 1 attempts"):
            action()


def test_no_secret_reaches_an_error_or_the_log(
    s3_server: FaultProxy, store: ArrowStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]]
    for fault in ("503", "403", "reset"):
        for action in (lambda: store.put("a", b"1"), lambda: store.get("a"), store.list, lambda: store.delete("a")):
            s3_server.faults = [fault] * 10
            with pytest.raises(StorageError) as caught:
                action()
            assert not any(secret in str(caught.value) for secret in secrets)
    assert not any(secret in caplog.text for secret in secrets)


def test_a_missing_bucket_shows_when_the_store_is_opened(s3_server: FaultProxy) -> None:
    with pytest.raises(StorageError, match="has no bucket 'bocket'"):
        open_store(s3_server.store_uri.replace("bucket", "bocket"))


def test_a_bucket_that_vanishes_is_named(store: ArrowStore, s3_server: FaultProxy) -> None:
    gone = ArrowStore(store._filesystem, "bocket/runs", uri="s3://bocket/runs")
    with pytest.raises(StorageError, match="after 1 attempts: the bucket does not exist"):
        gone.put("a", b"1")


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SECRET_ACCESS_KEY", "another-secret"), ("AWS_ACCESS_KEY_ID", "canary:nobody-at-all")]
)
def test_wrong_credentials_are_one_clear_error(
    s3_server: FaultProxy, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    open_store(s3_server.store_uri)
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="after 1 attempts: the credentials are wrong or have expired") as caught:
        open_store(s3_server.store_uri)
    assert not any(secret in str(caught.value) for secret in (value, S3_KEY, S3_SECRET))


def test_a_wrong_region_is_named_with_the_right_one(s3_server: FaultProxy) -> None:
    with pytest.raises(StorageError, match="the region is wrong: expected 'us-east-1', found 'eu-west-9'; add region"):
        open_store(s3_server.store_uri.replace("us-east-1", "eu-west-9"))


def test_access_that_is_denied_is_told_from_wrong_credentials(s3_server: FaultProxy, store: ArrowStore) -> None:
    s3_server.faults = ["403"] * 2
    with pytest.raises(StorageError, match="after 1 attempts: access is denied: the credentials that were found do"):
        open_store(s3_server.store_uri)


def test_a_server_that_does_not_answer_is_named(s3_server: FaultProxy, store: ArrowStore) -> None:
    s3_server.stop()
    with pytest.raises(StorageError, match="after 6 attempts: the store cannot be reached: check the endpoint"):
        store.put("a", b"1")


def test_a_server_killed_in_the_middle_of_a_write_leaves_the_old_object(own_swift: Swift) -> None:
    proxy = FaultProxy(own_swift.port, "bucket")
    store = impatient(proxy)
    old, new = b"old", bytes(range(256)) * 4096 * 12
    store.put("shard", old)
    proxy.faults = ["", own_swift.kill]  # the upload has begun, and the server dies when the first part arrives
    with pytest.raises(StorageError, match="cannot write 'shard'"):
        store.put("shard", new)
    own_swift.start()
    assert store.get("shard") == old
    assert proxy.raw_keys() == ["shard"]
    store.put("shard", new)
    assert store.get("shard") == new
    assert proxy.raw_keys() == ["shard"]
    proxy.stop()


def test_a_server_that_comes_back_is_met_again(own_swift: Swift) -> None:
    proxy = FaultProxy(own_swift.port, "bucket")
    store = open_store(proxy.store_uri)
    store.put("a", b"1")
    own_swift.kill()
    restart = threading.Timer(0.3, own_swift.start)
    restart.start()
    store.put("b", b"2")
    restart.join()
    assert store.list() == ["a", "b"]
    proxy.stop()


def test_the_first_object_stays(s3_server: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(s3_server.store_uri)
    assert store.creates_once
    s3_server.requests.clear()
    assert [store.create("only", bytes([number])) for number in range(4)] == [True, False, False, False]
    assert s3_server.requests[0].startswith("PUT "), "one conditional request, no look beforehand"
    assert store.get("only") == b"\0"
    assert s3_server.raw_keys() == ["only"]
    assert "create-once" not in caplog.text


def test_writers_at_the_same_moment_leave_one_whole_object(s3_server: FaultProxy) -> None:
    """Swift looks and writes in two steps, so several may be told that they won; what stays is one of theirs."""
    store = open_store(s3_server.store_uri)
    with ThreadPoolExecutor(8) as writers:
        wins = list(writers.map(lambda number: store.create("only", bytes([number]) * 1000), range(16)))
    assert any(wins)
    assert store.get("only") in [bytes([number]) * 1000 for number in range(16) if wins[number]]
    assert not store.create("only", b"late")


def test_an_answer_that_gets_lost_does_not_lose_the_creation(s3_server: FaultProxy) -> None:
    store = open_store(s3_server.store_uri)
    assert store.creates_once
    s3_server.faults = ["lost"]
    assert store.create("only", b"mine")
    s3_server.faults = ["503", "reset"]
    assert not store.create("only", b"theirs")
    assert store.get("only") == b"mine"


def test_trying_out_create_once_writes_leaves_nothing_behind(s3_server: FaultProxy) -> None:
    store = open_store(s3_server.store_uri)
    s3_server.faults = ["", "503", "503"]  # the first object of the trial is written, then the server fails
    assert store.creates_once
    assert s3_server.faults == []
    assert s3_server.raw_keys() == []


def test_a_server_that_ignores_the_condition_is_found_out_once(
    careless_swift: Swift, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3_uri(careless_swift.port, "bucket/runs"))
    assert not store.creates_once
    assert store.create("a", b"1")
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.get("a") == b"1"
    assert store.list() == ["a"]
    warnings = [record.getMessage() for record in caplog.records if "create-once" in record.getMessage()]
    assert len(warnings) == 1
    assert "(the server ignores the condition If-None-Match)" in warnings[0]


def test_without_the_optional_client_the_store_looks_first(
    s3_server: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    store = open_store(s3_server.store_uri)
    assert store.create("a", b"1")
    assert not store.create("a", b"2")
    assert store.get("a") == b"1"
    assert "(the package obstore is not installed)" in caplog.text


def test_no_secret_is_in_what_the_optional_client_says(
    s3_server: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(s3_server.store_uri)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    assert not store.creates_once  # Arrow has read the right secret already; the other client reads the wrong one
    assert "403" in caplog.text
    assert not any(secret in caplog.text for secret in (S3_KEY, S3_SECRET, "another-secret", "Signature="))


@pytest.mark.parametrize("rounds", [8, pytest.param(80, marks=pytest.mark.slow)])
def test_faults_leave_no_reference_to_a_missing_object(s3_server: FaultProxy, store: ArrowStore, rounds: int) -> None:
    """Shards are put first and the manifest that names them last, as the memory bank does."""
    faults = ["503", "reset", "", "503", "503", "", "reset", "403"]
    num_faults = 0
    for number in range(rounds):
        s3_server.faults = [faults[(number + index) % len(faults)] for index in range(6)]
        num_faults += sum(fault != "" for fault in s3_server.faults)
        try:
            store.put(f"{number}/shard", bytes([number]) * 1000)
            store.put(f"{number}/manifest", f"{number}/shard".encode())
        except StorageError:
            continue
    s3_server.faults = []
    manifests = [key for key in store.list() if key.endswith("manifest")]
    assert num_faults >= rounds * 2.5
    assert len(manifests) >= rounds // 8
    for key in manifests:
        shard = store.get(key).decode()
        assert store.get(shard) == bytes([int(shard.split("/")[0])]) * 1000
