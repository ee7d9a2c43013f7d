"""Storing a checkpoint survives a storage that fails for a moment."""

import pytest
from ray.train import Checkpoint

from ekgsearch.errors import StorageError
from ekgsearch.orchestration.checkpoints import retrying


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_store_that_fails_for_a_moment_is_tried_again(failures: int, tmp_path) -> None:
    calls = []

    def store() -> Checkpoint:
        calls.append(0)
        if len(calls) <= failures:
            raise OSError("503")
        return Checkpoint(str(tmp_path))

    assert retrying(store, "checkpoint c", pauses=(0.0, 0.0)).path == str(tmp_path)
    assert len(calls) == failures + 1


def test_a_store_that_stays_down_is_named_after_bounded_attempts() -> None:
    def store() -> Checkpoint:
        raise OSError("connection refused")

    with pytest.raises(StorageError, match="checkpoint c could not be stored in 3 attempts: connection refused"):
        retrying(store, "checkpoint c", pauses=(0.0, 0.0))
