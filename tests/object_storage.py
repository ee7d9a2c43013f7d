"""A real S3-compatible server for the tests (OpenStack Swift), and a proxy before it that fails on demand."""

import http.client
import importlib.util
import io
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs
import pytest

S3_KEY = "canary:AKIACANARYCANARY0001"
S3_SECRET = "canary/secret+key0123456789abcdef"
REGION = "us-east-1"
OWN_HEADERS = frozenset({"connection", "transfer-encoding", "expect", "content-length"})


def s3_uri(port: int, path: str) -> str:
    """Address of a store on a server of this machine."""
    return f"s3://{path}?endpoint_override=http://127.0.0.1:{port}&region={REGION}"


def filesystem_of(port: int) -> pyarrow.fs.S3FileSystem:
    """All buckets of a server of this machine."""
    return pyarrow.fs.S3FileSystem(
        access_key=S3_KEY,
        secret_key=S3_SECRET,
        region=REGION,
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        allow_bucket_creation=True,
    )


class Swift:
    """A Swift process on a folder; killed and started again it has the same objects and the same port."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.folder = folder
        self.extra = extra
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        script = Path(__file__).with_name("swift_server.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, self.folder, str(self.port), S3_KEY, S3_SECRET, *self.extra],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip().isdecimal():
            assert self.process.stderr is not None
            raise RuntimeError(f"Swift did not start: {self.process.stderr.read()}")
        self.port = int(line)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def make_bucket(self, name: str) -> None:
        filesystem_of(self.port).create_dir(name)


class ProxyHandler(BaseHTTPRequestHandler):
    """Hands a request on, unless a fault is due."""

    protocol_version = "HTTP/1.1"
    server: "FaultProxy"

    def log_message(self, format: str, *args: object) -> None:
        return

    def handle_any(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        fault = self.server.faults.pop(0) if self.server.faults else ""
        is_broken = self.server.broken and self.server.broken in self.path
        if is_broken or self.command == self.server.refused:
            fault = "503"
        if fault == "reset":
            self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 10))
            self.drop()
            return
        body = self.read_body()
        if callable(fault):
            fault()
        elif fault == "503":
            secret = f"<Detail>{self.headers.get('Authorization')} {S3_SECRET}</Detail>"
            self.answer(503, f"<Error><Code>SlowDown</Code><Message>slow {secret}</Message></Error>".encode())
            return
        elif fault == "403":
            message = f"<Error><Code>AccessDenied</Code><Message>secret_key={S3_SECRET}</Message></Error>"
            self.answer(403, message.encode())
            return
        elif fault == "stall":
            self.server.is_stopped.wait(60)
            self.drop()
            return
        try:
            status, headers, answer = self.forward(body)
        except OSError:  # the server is stopped
            self.drop()
            return
        if fault == "lost":
            self.drop()
            return
        self.answer(status, answer[: len(answer) // 2] if fault == "cut" else answer, headers)
        if fault == "cut":
            self.drop()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def drop(self) -> None:
        """End the connection without a farewell."""
        self.close_connection = True
        with_reset = b"\1\0\0\0\0\0\0\0"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, with_reset)
        self.connection.close()

    def read_body(self) -> bytes:
        """Read the content of a request, out of its chunks if there are any."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            return read_chunks(self.rfile)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Ask the real server, with the headers as they were signed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in OWN_HEADERS:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.lower() != "connection"}
        content = answer.read()
        connection.close()
        return answer.status, headers, content

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if name.lower() != "transfer-encoding":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def read_chunks(file: BinaryIO) -> bytes:
    """Read chunks up to the empty last one and the trailers behind it."""
    data = io.BytesIO()
    while size := int(file.readline().split(b";")[0], 16):
        data.write(file.read(size))
        file.readline()
    while file.readline().strip():
        continue
    return data.getvalue()


class FaultProxy(ThreadingHTTPServer):
    """Stands before a server; `faults` are those of its next requests, one each, "" for none.

    503 and 403 (with a secret in the answer), reset (in the middle of the request), cut (in the middle of the answer),
    lost (the request is done, the answer never comes), stall (nothing is done, and the connection stays open until the
    client gives up), or a function that is called before the request goes on.
    """

    daemon_threads = True

    def __init__(self, target: int, bucket: str) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.target = target
        self.bucket = bucket
        self.prefix = f"runs/{secrets.token_hex(4)}"
        self.faults: list[str | Callable[[], None]] = []
        self.broken = ""  # requests with this in their address always fail
        self.refused = ""  # requests of this method, too
        self.requests: list[str] = []
        self.is_stopped = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        return

    @property
    def store_uri(self) -> str:
        """Address of a store that is empty at first, through this proxy."""
        return self._uri(self.server_port)

    @property
    def direct_uri(self) -> str:
        """Address of the same store without faults."""
        return self._uri(self.target)

    def _uri(self, port: int) -> str:
        return s3_uri(port, f"{self.bucket}/{self.prefix}")

    def raw_keys(self) -> list[str]:
        """Every object of the store, unfinished ones that stores do not list included."""
        base = f"{self.bucket}/{self.prefix}"
        selector = pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True)
        infos = filesystem_of(self.target).get_file_info(selector)
        return sorted(info.path.removeprefix(f"{base}/") for info in infos if info.is_file)

    def stop(self) -> None:
        self.is_stopped.set()
        self.shutdown()
        self.server_close()


def start_swift(folder: Path, *extra: str) -> Swift:
    """Start a Swift with one bucket; skip where it cannot run."""
    if importlib.util.find_spec("swift") is None:
        pytest.skip("OpenStack Swift is not installed (extra `test`, Linux only)")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.setxattr(folder, "user.swift", b"1")
    except (OSError, AttributeError) as error:
        pytest.skip(f"Swift keeps its metadata in extended attributes, which {folder} does not have: {error}")
    swift = Swift(folder, *extra)
    swift.start()
    swift.make_bucket("bucket")
    return swift


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """The server that all tests share; each has a prefix of its own."""
    server = start_swift(tmp_path_factory.mktemp("swift"))
    yield server
    server.kill()


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the right key and secret where clients look for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3_server(swift: Swift, s3_keys: None) -> Iterator[FaultProxy]:
    """The shared server behind a proxy that fails on demand."""
    proxy = FaultProxy(swift.port, "bucket")
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def gcs_port() -> Iterator[int]:
    """Port of an emulator of Google Cloud Storage with one bucket in memory; the real thing runs nowhere else."""
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        pytest.skip("gcp-storage-emulator is not installed (extra `test`)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=bucket", "--quiet"]
    server = subprocess.Popen([sys.executable, "-m", "gcp_storage_emulator", "start", *options])
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    yield port
    server.kill()
    server.wait()


@pytest.fixture
def careless_swift(tmp_path: Path, s3_keys: None) -> Iterator[Swift]:
    """A server that ignores the condition If-None-Match."""
    server = start_swift(tmp_path / "swift", "careless")
    yield server
    server.kill()


@pytest.fixture
def own_swift(tmp_path: Path, s3_keys: None) -> Iterator[Swift]:
    """A server that a test may kill."""
    server = start_swift(tmp_path / "swift")
    yield server
    server.kill()
