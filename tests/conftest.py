"""Fixtures that every room uses: the folder of real data, quiet and small torch."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


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
    """Undo what a test did to the log of the package, so that the next one can read it."""
    logger = logging.getLogger("ekgsearch")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
