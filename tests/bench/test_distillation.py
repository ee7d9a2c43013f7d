"""The benchmark of the objectives runs each of them, and notices a side that does more work."""

from ekgsearch.bench.base import Measurement
from ekgsearch.bench.distillation import Settings, run


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
