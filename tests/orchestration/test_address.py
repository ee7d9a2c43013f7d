"""A wrong address of a cluster is told in one line within seconds."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from command_line import RunCommand

from ekgsearch.errors import WorkerError
from ekgsearch.orchestration import address as module
from ekgsearch.orchestration.address import require_head
from ekgsearch.orchestration.session import ray_session
from ekgsearch.sections.cluster import ClusterSection

TOKEN = "0123456789abcdef"


class Head(grpc.GenericRpcHandler):
    """Answers as the head of a cluster does, or as something else."""

    is_ray = True
    wants_token = False

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(self.answer) if self.is_ray and call.method == QUESTION else None

    def answer(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        shown = dict(context.invocation_metadata()).get("authorization")
        if self.wants_token and shown != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""


QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Head, str]]:
    """A head, and where it listens."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    handler, server = Head(), grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None)


def test_a_head_is_known_by_its_answer(head: tuple[Head, str]) -> None:
    handler, address = head
    require_head(address)
    handler.is_ray = False
    with pytest.raises(WorkerError, match=f"no Ray session at {address}: what answers there is no head"):
        require_head(address)


def test_a_head_that_wants_a_token_gets_that_of_this_machine(head: tuple[Head, str], tmp_path: Path) -> None:
    handler, address = head
    handler.wants_token = True
    for token in (None, "another"):
        if token:
            (tmp_path / "token").write_text(token)
        with pytest.raises(WorkerError, match=f"{address} refuses this machine, which needs the same token"):
            require_head(address)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    require_head(address)


def test_silence_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        addresses = [f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1:1", "nowhere.invalid:6379"]
        for address in addresses:
            with pytest.raises(WorkerError, match=f"no Ray session at {address}: nothing answers"):
                require_head(address)
    for address in ("auto", "local", "nonsense", "ray://127.0.0.1:1", "host:port"):
        require_head(address)  # Ray's own business


def test_the_address_of_a_job_goes_before_that_of_the_environment(
    head: tuple[Head, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def init(**options: Any) -> None:
        seen.extend([options["address"], os.environ["RAY_ADDRESS"]])  # where both differ, Ray takes the latter
        raise ConnectionError

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(WorkerError), ray_session(ClusterSection(address=head[1]), num_cpus=1):
        pass
    assert seen == [head[1], head[1]]
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Could not find any running Ray instance. Please specify", "none is running on this machine; give HOST:PORT"),
        ("Found multiple active Ray instances: {'1.2.3.4:5'}.", "several are running on this machine; give HOST:PORT"),
        ("Invalid address\n format: x", "Invalid address format: x;"),
    ],
)
def test_what_ray_says_of_addresses_reaches_nobody_in_its_own_words(
    error: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> None:
        logging.getLogger("ray._private.services").warning("Found multiple active Ray instances: {'1.2.3.4:5'}.")
        raise ConnectionError(error)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(WorkerError) as refused, ray_session(ClusterSection(address="auto"), num_cpus=1):
        pass
    assert f"no Ray session at auto: {said}" in str(refused.value)
    assert "multiple" not in str(refused.value) + caplog.text


def test_a_run_at_a_wrong_address_ends_within_ten_seconds_with_one_line(job_file: Path, ekgsearch: RunCommand) -> None:
    start = time.monotonic()
    finished = ekgsearch("run", job_file, "--address", "127.0.0.1:1")
    assert finished.returncode == 2
    assert time.monotonic() - start < 10
    assert finished.stderr.startswith("error: no Ray session at 127.0.0.1:1: nothing answers")
    assert finished.stderr.count("\n") == 1
