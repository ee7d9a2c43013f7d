"""The benchmark of the memory bank runs in small and reports every comparison."""

from pathlib import Path

import pytest
import torch

from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bench import bank as bench
from ekgsearch.bench.bank import Settings, run
from ekgsearch.errors import JobError
from ekgsearch.storage.objects import open_store


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_read_is_compared(tmp_path: Path, dtype: str) -> None:
    settings = Settings(
        bench="bank", images=600, classes=50, batch_size=64, batches=5, pairs=2, dtype=dtype, folder=str(tmp_path)
    )
    rows = list(run(settings))
    found = {(row.case, row.quantity): row.value for row in rows}
    assert len(found) == len(rows)
    others = {
        "shuffled, warm, packed": {"numpy", "arrow", "parquet"},
        "in order, warm, packed": {"pyarrow"},
        "shuffled, cold, packed": {"numpy"},
        "in order, cold, packed": {"pyarrow"},
    } | ({} if dtype == "int8" else {"shuffled, warm, float32": {"numpy"}})
    ratios = {(case, quantity) for case, quantity in found if quantity.startswith("speed against")}
    assert ratios == {(f"{case}: bank", f"speed against {other}") for case in others for other in others[case]}
    speeds = {row.case for row in rows if row.unit == "rows/s"}
    assert speeds == {f"{case}: {name}" for case in others for name in others[case] | {"bank"}}
    assert [
        row for row in rows if row.low <= 0 and row.case != "filling and reading"
    ] == []  # a small bank may take none
    assert found["bank", "size"] == (600 * 50 * 5 * 2 if dtype == "float16" else 600 * (5 * 8 + 252)) / 1e6
    assert list(tmp_path.iterdir()) == [], "files of the benchmark are left behind"


def test_a_store_is_written_to_and_fetched_from_and_empty_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    settings = Settings(
        bench="bank", images=600, classes=50, batch_size=64, batches=5, pairs=1, folder=str(tmp_path), uri=str(place)
    )
    found = {(row.case, row.unit): row.value for row in run(settings) if row.case.startswith("store: ")}
    assert set(found) == {(f"store: {verb}", unit) for verb in ("written", "fetched") for unit in ("rows/s", "MB/s")}
    assert found["store: fetched", "rows/s"] == pytest.approx(found["store: fetched", "MB/s"] * 1e6 / (50 * 5 * 2))
    assert open_store(str(place)).list() == []
    open_store(str(place)).put("a key", b"of somebody else")
    with pytest.raises(JobError, match="expected an empty place, found 'a key'"):
        list(run(settings))
    assert open_store(str(place)).list() == ["a key"]


def test_other_formats_give_the_rows_that_the_bank_gives(tmp_path: Path) -> None:
    spec = BankSpec(
        dataset_hash="", weights_hash="", teachers=("a", "b"), num_images=1000, num_classes=50, batches_per_block=1
    )
    bench._build(spec, str(tmp_path / "store"))
    bank = bench._open(spec, tmp_path)
    bench._write_others(bank, tmp_path, 64)
    places = torch.tensor([999, 3, 500, 3, 16, 15])
    expected = [row.tobytes() for row in bank.read_packed(bank.order[places]).numpy()]
    assert bench._arrow_rows(spec, tmp_path)(places).to_pylist() == expected
    assert bench._parquet_rows(tmp_path)(places).column("row").to_pylist() == expected
