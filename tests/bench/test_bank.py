"""The benchmark of the memory bank runs in small and reports every comparison."""

from pathlib import Path

import pytest

from ekgsearch.bench.bank import Settings, run


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_read_is_compared(tmp_path: Path, dtype: str) -> None:
    settings = Settings(
        bench="bank", images=600, classes=50, batch_size=64, batches=5, pairs=2, dtype=dtype, folder=str(tmp_path)
    )
    found = {(row.case, row.quantity): row.value for row in run(settings)}
    ratios = [case for case, quantity in found if quantity.startswith("speed against")]
    expected = ["shuffled, warm, packed", "in order, warm, packed", "shuffled, cold, packed", "in order, cold, packed"]
    assert set(ratios) == {f"{case}: bank" for case in expected + ["shuffled, warm, float32"] * (dtype != "int8")}
    assert all(value > 0 for value in found.values())
    assert found["bank", "size"] == (600 * 50 * 5 * 2 if dtype == "float16" else 600 * (5 * 8 + 252)) / 1e6
    assert list(tmp_path.iterdir()) == [], "files of the benchmark are left behind"
