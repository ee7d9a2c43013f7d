"""What runs on Ray and what in the process of the run."""

from pathlib import Path
from typing import Any

import pytest

from ekgsearch.orchestration import backend as module
from ekgsearch.orchestration.backend import RayBackend
from ekgsearch.runtime.ledger import Clock
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.workers.backend import InProcessBackend


@pytest.mark.parametrize(
    ("variable", "address", "workers", "place"),
    [
        (None, None, 1, "here"),
        (None, None, 2, "ray"),
        ("10.0.0.1:6379", None, 1, "ray"),
        (None, "10.0.0.1:6379", 1, "ray"),
    ],
)
def test_a_cluster_trains_whichever_way_it_is_named(
    variable: str | None, address: str | None, workers: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr(InProcessBackend, "train", lambda *_, **__: places.append("here"))
    monkeypatch.setattr(module, "fit", lambda *_, **__: places.append("ray"))
    spec: Any = None
    RayBackend(ClusterSection(address=address)).train(spec, folder=Path(), workers=workers, clock=Clock())
    assert places == [place]
