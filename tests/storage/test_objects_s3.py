"""The store over S3: requests are repeated, nothing is half there, no secret shows."""

import gc
import logging
import os
import threading
import time
from typing import Any

import pyarrow.fs
import pytest

from ekgsearch.errors import StorageError
from ekgsearch.storage.arrow_store import ArrowStore
from ekgsearch.storage.objects import open_store


@pytest.fixture
def store(s3_server: Any) -> ArrowStore:
    """The store with short pauses and without the client's own repetitions, so that every fault reaches it."""
    filesystem = pyarrow.fs.S3FileSystem(
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{s3_server.server_port}",
        allow_delayed_open=True,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    return ArrowStore(filesystem, "bucket/runs/one", uri=s3_server.store_uri, first_delay_seconds=0.001)


def test_a_small_object_is_one_request(s3_server: Any) -> None:
    store = open_store(s3_server.store_uri)
    s3_server.requests.clear()
    store.put("a", b"1")
    assert [request.split()[0] for request in s3_server.requests] == ["PUT"]
    assert s3_server.objects == {"bucket/runs/one/a": b"1"}


SLOWER = [pytest.param(broken, marks=pytest.mark.slow) for broken in ("partNumber=1&", "?uploadId", "/shard")]


@pytest.mark.parametrize("broken", ["partNumber=2&", "?uploads", *SLOWER])
def test_a_shard_of_many_parts_appears_whole_or_not_at_all(s3_server: Any, store: ArrowStore, broken: str) -> None:
    old, new = b"old", bytes(range(256)) * 4096 * 12
    store.put("shard", old)
    s3_server.broken = broken
    with pytest.raises(StorageError, match="after 6 attempts"):
        store.put("shard", new)
    gc.collect()
    s3_server.broken = ""
    assert store.get("shard") == old
    assert store.list() == ["shard"]
    store.put("shard", new)
    assert any("?uploads" in request for request in s3_server.requests)
    assert store.get("shard") == new


@pytest.mark.parametrize("fault", ["503", "reset", "slow"])
def test_every_request_outlives_passing_faults(s3_server: Any, store: ArrowStore, fault: str) -> None:
    faults = [fault] * (1 if fault == "slow" else 3)
    s3_server.faults = faults.copy()
    store.put("a", b"0123456789")
    assert s3_server.objects["bucket/runs/one/a"] == b"0123456789"
    for action, expected in (
        (lambda: store.get("a"), b"0123456789"),
        (lambda: store.read_range("a", 2, 3), b"234"),
        (lambda: store.exists("a"), True),
        (lambda: store.list(), ["a"]),
    ):
        s3_server.faults = faults.copy()
        assert action() == expected
        assert s3_server.faults == []
    s3_server.faults = faults.copy()
    store.delete("a")
    assert store.list() == []


def test_a_short_answer_is_not_taken_for_the_object(s3_server: Any, store: ArrowStore) -> None:
    store.put("a", bytes(100_000))
    s3_server.faults = ["", "cut"]
    assert store.get("a") == bytes(100_000)


def test_attempts_are_bounded_and_counted(s3_server: Any, store: ArrowStore, caplog: pytest.LogCaptureFixture) -> None:
    s3_server.faults = ["503"] * 100
    with pytest.raises(StorageError, match=r"cannot write 'a' in s3://bucket/runs/one.* after 6 attempts"):
        store.put("a", b"1")
    assert len(s3_server.requests) == 6
    assert "attempt 5 of 6" in caplog.text
    s3_server.faults = []
    assert store.list() == []


def test_refused_permission_is_not_repeated(s3_server: Any, store: ArrowStore) -> None:
    for action in (lambda: store.put("a", b"1"), lambda: store.get("a"), store.list):
        s3_server.faults = ["403"] * 10
        with pytest.raises(StorageError, match="after 1 attempts"):
            action()


def test_no_secret_reaches_an_error_or_the_log(
    s3_server: Any, store: ArrowStore, caplog: pytest.LogCaptureFixture
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


def test_a_missing_bucket_or_server_shows_when_the_store_is_opened(s3_server: Any) -> None:
    with pytest.raises(StorageError, match="has no bucket 'bocket'"):
        open_store(s3_server.store_uri.replace("bucket", "bocket"))


def test_a_server_that_comes_back_is_met_again(s3_server: Any, store: ArrowStore) -> None:
    store.put("a", b"1")
    port, objects = s3_server.server_port, s3_server.objects
    s3_server.stop()
    restarted: list[Any] = []

    def restart() -> None:
        time.sleep(0.3)
        restarted.append(type(s3_server)(port))
        restarted[0].objects.update(objects)

    thread = threading.Thread(target=restart)
    thread.start()
    patient = ArrowStore(store._filesystem, "bucket/runs/one", uri=store.uri, first_delay_seconds=0.05)
    try:
        patient.put("b", b"2")
        assert patient.list() == ["a", "b"]
    finally:
        thread.join()
        restarted[0].stop()


@pytest.mark.parametrize("rounds", [8, pytest.param(80, marks=pytest.mark.slow)])
def test_faults_leave_no_reference_to_a_missing_object(s3_server: Any, store: ArrowStore, rounds: int) -> None:
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
