"""Fixtures that every room uses: the folder of real data, quiet and small torch."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_storage import careless_swift, gcs_port, own_swift, s3_keys, s3_server, swift  # noqa: F401


def pytest_configure() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads that wait for each other are slow on a busy machine


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data named by EKGSEARCH_DATA; tests that need it skip where it is not set."""
    root = os.environ.get("EKGSEARCH_DATA")
    if not root:
        pytest.skip("EKGSEARCH_DATA is not set: real data needed")
    folder = Path(root)
    if not folder.is_dir():
        pytest.fail(f"EKGSEARCH_DATA names {folder}, which is no folder")
    return folder


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    """Use one torch thread, so that float results do not depend on the machine."""
    if "torch" in __import__("sys").modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """Start every test with a log that it can read, whatever another test or a Ray session did to it."""
    logger = logging.getLogger("ekgsearch")
    handlers, propagate = list(logger.handlers), logger.propagate
    logger.setLevel(logging.INFO)  # a Ray session raises the level of the root logger, which would count otherwise
    yield
    logger.handlers[:], logger.propagate = handlers, propagate


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let child processes be interrupted also where this one was started in the background, which ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
