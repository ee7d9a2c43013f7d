"""Runs whose latencies are measured in few and short rounds: what a pass takes is tested in `test_latency.py`."""

import pytest

from ekgsearch.runtime import latency


@pytest.fixture(autouse=True)
def _short_latencies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_latency.py":
        monkeypatch.setattr(latency, "ROUNDS", 3)
        monkeypatch.setattr(latency, "PASS_SECONDS", 0.002)
