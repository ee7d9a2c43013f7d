"""Disks that are full or refuse, mounted where this process may mount; an S3 server in memory that fails on demand."""

import io
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

S3_ACCESS_KEY = "AKIACANARYCANARY0001"
S3_SECRET_KEY = "canary/secret+key0123456789abcdef"


def mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a memory disk here ({error}): needs root on Linux")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=1m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that takes no change, with the file ``kept`` (b"old") on it."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount(folder, "size=1m")
    try:
        (folder / "kept").write_bytes(b"old")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True)
def _importable_in_subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs that a test starts import the package from the source tree."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def read_chunks(file: BinaryIO) -> bytes:
    """Read chunks up to the empty last one and the trailers behind it."""
    data = b""
    while size := int(file.readline().split(b";")[0], 16):
        data += file.read(size)
        file.readline()
    while file.readline().strip():
        continue
    return data


class S3Handler(BaseHTTPRequestHandler):
    """Answers the few S3 requests that Arrow makes on small objects."""

    protocol_version = "HTTP/1.1"
    server: "FakeS3"

    def log_message(self, format: str, *args: object) -> None:
        return

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, length: int = -1) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        """Read the whole content of a request, out of up to two layers of chunks."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = read_chunks(self.rfile)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return read_chunks(io.BytesIO(data)) if self.headers.get("Content-Encoding") == "aws-chunked" else data

    def fails(self) -> bool:
        """Act out the next fault, if one is due."""
        self.server.requests.append(f"{self.command} {self.path}")
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if self.server.broken and self.server.broken in self.path:
            fault = "503"
        if fault == "503":
            self.body()
            secret = f"<Detail>{self.headers.get('Authorization')} {S3_SECRET_KEY}</Detail>"
            self.answer(503, f"<Error><Code>SlowDown</Code><Message>slow {secret}</Message></Error>".encode())
        elif fault == "403":
            self.body()
            message = f"<Error><Code>AccessDenied</Code><Message>secret_key={S3_SECRET_KEY}</Message></Error>"
            self.answer(403, message.encode())
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 10))
            self.close_connection = True
            self.connection.close()
        elif fault == "cut":
            self.body()
            self.answer(200, b"half", length=100_000)
            self.close_connection = True
        elif fault == "slow":
            time.sleep(0.3)
            return False
        return bool(fault)

    def locate(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path).lstrip("/"), parse_qs(parts.query, keep_blank_values=True)

    def do_PUT(self) -> None:
        if self.fails():
            return
        path, query = self.locate()
        part = f"?{query['partNumber'][0]:0>5}" if "partNumber" in query else ""
        data = self.body()
        if "x-amz-copy-source" in self.headers:
            data = self.server.objects[unquote(self.headers["x-amz-copy-source"])]
        (self.server.parts if part else self.server.objects)[path + part] = data
        self.answer(200, b"<CopyObjectResult><ETag>1</ETag></CopyObjectResult>", headers={"ETag": '"1"'})

    def do_POST(self) -> None:
        """Begin or complete an upload in parts."""
        if self.fails():
            return
        path, query = self.locate()
        self.body()
        if "uploads" in query:
            self.answer(200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
            return
        names = sorted(name for name in self.server.parts if name.startswith(f"{path}?"))
        self.server.objects[path] = b"".join(self.server.parts.pop(name) for name in names)
        self.answer(200, b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        if not self.fails():
            self.server.objects.pop(self.locate()[0], None)
            self.answer(204)

    def do_GET(self) -> None:
        if self.fails():
            return
        path, query = self.locate()
        bucket, _, key = path.partition("/")
        if bucket != "bucket":
            self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif not key:
            self.answer(200, self.listing(query) if "list-type" in query else b"")
        elif path not in self.server.objects:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.send_object(self.server.objects[path])

    def send_object(self, data: bytes) -> None:
        dated = {"Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT", "ETag": '"1"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            self.answer(200, data, dated)
            return
        start, end = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        if start > end:
            self.answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        self.answer(206, data[start : end + 1], {**dated, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def listing(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        items, folders = "", set()
        for path, data in sorted(self.server.objects.items()):
            key = path.partition("/")[2]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in key[len(prefix) :]:
                folders.add(prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter)
                continue
            items += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                "<LastModified>2022-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        items += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()


class FakeS3(ThreadingHTTPServer):
    """A server with one bucket in memory, and the faults of its next requests."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), S3Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.broken = ""  # requests with this in their address always fail
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        return

    @property
    def store_uri(self) -> str:
        """Address of a store in the bucket."""
        return f"s3://bucket/runs/one?endpoint_override=http://127.0.0.1:{self.server_port}&region=us-east-1"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = FakeS3()
    yield server
    server.stop()
