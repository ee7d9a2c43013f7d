"""Find out in seconds whether a Ray head answers at an address; Ray itself tries for minutes, with a line a second."""

import os
from pathlib import Path

import grpc

from ekgsearch.errors import WorkerError

ANSWER_SECONDS = 3.0
"""How long a head may take to answer."""

_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # it needs no argument, and every head answers it
_ADVICE = "(cluster/README.md)"


def token_file() -> Path:
    """The file of the token that this machine shows to a cluster."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def require_head(address: str) -> None:
    """Ask the head of a cluster for its identity.

    Args:
        address: ``HOST:PORT``; any other form, such as ``auto``, is left to Ray, which refuses a wrong one at once.

    Raises:
        WorkerError: nothing answers there, or it is no head of a Ray cluster, or it refuses this machine's token.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return
    found = _ask(address, token="")
    if found is grpc.StatusCode.UNAUTHENTICATED:
        found = _ask(address, token=_token())
        if found is grpc.StatusCode.UNAUTHENTICATED:
            raise WorkerError(
                f"the Ray head at {address} refuses this machine, which needs the same token as the head: in "
                f"{token_file()}, or where RAY_AUTH_TOKEN_PATH says {_ADVICE}"
            )
    if found is grpc.StatusCode.OK:
        return
    silent = found in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    what = "nothing answers there" if silent else "what answers there is no head of a Ray cluster"
    raise WorkerError(
        f"no Ray session at {address}: {what}; start a head with cluster/ray.sh, or correct --address, "
        f"cluster.address or RAY_ADDRESS {_ADVICE}"
    )


def _ask(address: str, token: str) -> grpc.StatusCode:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=ANSWER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            found: grpc.StatusCode = error.code()
            return found
    return grpc.StatusCode.OK


def _token() -> str:
    """The token that Ray would show: of the environment, else of a file."""
    try:
        return os.environ.get("RAY_AUTH_TOKEN") or token_file().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
