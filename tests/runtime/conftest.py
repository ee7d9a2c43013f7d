"""Fixtures of what is shown while a run goes on."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    logger = logging.getLogger("ekgsearch")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for handler in logger.handlers:
        handler.close()
    logger.level, logger.propagate, logger.handlers = before
    logger.setLevel(before[0])
