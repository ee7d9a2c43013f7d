"""The benchmark of the objectives runs each of them, and notices a side that does more work."""

import pytest
from torch import Tensor

from ekgsearch.bank.row_file import RowFile
from ekgsearch.bench.base import Measurement
from ekgsearch.bench.distillation import Settings, run


def test_the_rows_of_every_step_come_from_the_file_of_a_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    gather = RowFile.gather

    def watched(file: RowFile, positions, **options) -> Tensor:
        gathered.append(len(positions))
        return gather(file, positions, **options)

    monkeypatch.setattr(RowFile, "gather", watched)
    settings = Settings(bench="distillation", net="resnet20", image_size=8, batch_size=8, steps=2, pairs=1)
    run(settings)
    assert gathered == [8] * 4  # one unmeasured call, one pair


def test_every_objective_is_compared_with_plain_steps() -> None:
    settings = Settings(
        bench="distillation",
        net="resnet20",
        image_size=8,
        objectives=("single", "ekg", "byol"),
        batch_size=8,
        steps=1,
        pairs=3,
    )
    found: dict[str, Measurement] = {
        measurement.case: measurement for measurement in run(settings) if measurement.unit == "x"
    }
    assert list(found) == [
        "plain against itself",
        "single against plain, two views",
        "ekg against plain, two views",
        "byol against plain, two views",
    ]
    assert all(measurement.repeats == 3 and measurement.low > 0 for measurement in found.values())
    noise = found["plain against itself"]
    assert found["byol against plain, two views"].value > noise.value, "BYOL has a second forward pass and heads"
