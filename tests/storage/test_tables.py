"""Tables say what their columns hold, take only rows that fit, and notice damage."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ekgsearch.errors import StorageError
from ekgsearch.rows.pictures import PictureRow
from ekgsearch.rows.search import SubnetworkRow
from ekgsearch.rows.study import StudyRow
from ekgsearch.rows.tables import TABLES
from ekgsearch.storage.tables import (
    append_rows,
    concat_tables,
    read_arrow,
    read_table,
    schema,
    write_arrow,
    write_table,
)
from ekgsearch.sweep.rows import TABLES as SWEEP_TABLES

ROW_TYPES = [*TABLES.values(), *SWEEP_TABLES.values(), StudyRow, PictureRow]
ROWS = [SubnetworkRow("run", 1, -1, f"layer{index}.conv é", 16, 8, "[0,1]") for index in range(5)]


@dataclasses.dataclass(frozen=True)
class Measured:
    name: str
    loss: float
    count: int
    won: bool


@pytest.mark.parametrize("row_type", ROW_TYPES)
def test_every_column_of_every_record_is_described_in_the_file(tmp_path: Path, row_type: type) -> None:
    write_table(tmp_path / "a.parquet", [], row_type)
    table = read_arrow(tmp_path / "a.parquet")
    assert table.schema.metadata == schema(row_type).metadata
    for found, expected in zip(table.schema, schema(row_type), strict=True):
        if pa.types.is_map(expected.type):  # parquet gives the values within a map another name
            assert pa.types.is_map(found.type)
            assert found.metadata == expected.metadata
        else:
            assert found.equals(expected, check_metadata=True)
    assert table.schema.names == [field.name for field in dataclasses.fields(row_type)]
    assert all(len(column.metadata[b"description"]) > 5 for column in table.schema)
    assert read_table(tmp_path / "a.parquet").attrs["descriptions"].keys() == set(table.schema.names)


def test_values_come_back_with_nan_and_large_numbers(tmp_path: Path) -> None:
    rows = [Measured("é", float("nan"), 2**62, True), Measured("", -0.5, -1, False)]
    write_table(tmp_path / "a.parquet", rows, Measured)
    frame = read_table(tmp_path / "a.parquet")
    assert frame["name"].tolist() == ["é", ""]
    assert frame["loss"].isna().tolist() == [True, False]
    assert frame["count"].tolist() == [2**62, -1]
    assert frame["won"].tolist() == [True, False]
    assert pd.read_parquet(tmp_path / "a.parquet")["count"].tolist() == [2**62, -1]


@dataclasses.dataclass(frozen=True)
class Loose:
    beta: float | None
    teachers: int | None
    settings: dict[str, str]


def test_empty_cells_and_maps_come_back(tmp_path: Path) -> None:
    rows = [Loose(0.73, None, {"search.step": "0.2", "é": "[1,2]"}), Loose(None, 2**40, {})]
    write_table(tmp_path / "a.parquet", rows, Loose)
    found = read_arrow(tmp_path / "a.parquet").to_pylist(maps_as_pydicts="strict")
    assert [Loose(**row) for row in found] == rows
    with pytest.raises(StorageError, match="teachers"):
        write_table(tmp_path / "a.parquet", [Loose(0.5, "many", {})], Loose)  # type: ignore[arg-type]


def test_appended_rows_follow_the_old_ones(tmp_path: Path) -> None:
    append_rows(tmp_path / "a.parquet", ROWS[:2], SubnetworkRow)
    append_rows(tmp_path / "a.parquet", ROWS[2:], SubnetworkRow)
    write_table(tmp_path / "b.parquet", ROWS, SubnetworkRow)
    assert read_arrow(tmp_path / "a.parquet").equals(read_arrow(tmp_path / "b.parquet"), check_metadata=True)


def test_rows_of_another_kind_or_type_are_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, [Measured("a", 1.0, 1, True)], Measured)
    before = path.read_bytes()
    for wrong in (Measured("a", "x", 1, True), Measured("a", 1.0, 2**63, True), Measured(None, 1.0, 1, True)):
        with pytest.raises(StorageError, match=r"Measured\.\w+ expects"):
            write_table(path, [wrong], Measured)
    with pytest.raises(StorageError, match="expected rows of type Measured, found SubnetworkRow"):
        write_table(path, ROWS, Measured)
    with pytest.raises(StorageError, match="an older version wrote it"):
        append_rows(path, ROWS, SubnetworkRow)
    assert path.read_bytes() == before


def test_rows_are_not_appended_to_columns_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_arrow(path, pa.table({"name": ["a"], "loss": [1], "count": [1], "won": [True]}))
    with pytest.raises(StorageError, match="an older version wrote it"):
        append_rows(path, [Measured("a", 1.0, 1, True)], Measured)


def test_a_text_that_looks_like_the_place_of_the_checksum_is_not_taken_for_it(tmp_path: Path) -> None:
    row = Measured(f"sha256\x18\x40{'0' * 64}", 1.0, 1, True)
    write_table(tmp_path / "a.parquet", [row], Measured)
    assert read_table(tmp_path / "a.parquet")["name"].tolist() == [row.name]


def test_a_column_that_an_older_file_lacks_is_empty_there(tmp_path: Path) -> None:
    write_arrow(tmp_path / "old", pa.table({"x": [1]}))
    write_arrow(tmp_path / "new", pa.table({"x": [2], "y": ["b"]}))
    assert concat_tables([tmp_path / "old", tmp_path / "new"]).to_pydict() == {"x": [1, 2], "y": [None, "b"]}


def test_a_record_with_a_column_that_parquet_rows_cannot_hold_is_refused() -> None:
    with pytest.raises(StorageError, match=r"Odd\.kept is .*list.*expected str, int, float, bool"):
        schema(dataclasses.make_dataclass("Odd", [("kept", list[int])]))


def test_tables_of_several_runs_are_put_together_with_their_descriptions(tmp_path: Path) -> None:
    for name in "ab":
        write_table(tmp_path / name, ROWS, SubnetworkRow)
    table = concat_tables([tmp_path / "a", tmp_path / "b"])
    assert table.num_rows == 10
    write_arrow(tmp_path / "all", table)
    assert (
        read_table(tmp_path / "all").attrs["descriptions"]["size"]
        == "channels of the channel group in the unpruned network"
    )


def test_tables_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write_arrow(tmp_path / "a", pa.table({"x": [1]}))
    write_arrow(tmp_path / "b", pa.table({"x": ["text"]}))
    with pytest.raises(StorageError, match="do not fit together"):
        concat_tables([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(StorageError, match="at least one"):
        concat_tables([])


def test_missing_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.parquet does not exist"):
        read_table(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("run,iteration\n")
    with pytest.raises(StorageError, match=r"text\.parquet is no whole parquet file"):
        read_table(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    assert read_table(tmp_path / "other.parquet")["x"].tolist() == [1]


@pytest.fixture(scope="module")
def sound_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.parquet"
    write_table(path, ROWS, SubnetworkRow)
    return path.read_bytes()


def check_damage_is_found(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"a\.parquet (is damaged|is no whole|has lost its checksum)"):
        read_arrow(path)


def checksum_marker(data: bytes) -> range:
    """Positions without which the checksum is not found; the parser meets these damages."""
    start = data.rindex(b"sha256\x18\x40")
    return range(start, start + 8)


@given(position=st.integers(0, 10**6), mask=st.integers(1, 255))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_byte_is_found(sound_bytes: bytes, tmp_path: Path, position: int, mask: int) -> None:
    changed = bytearray(sound_bytes)
    position %= len(changed)
    if position in checksum_marker(sound_bytes):
        position = 0
    changed[position] ^= mask
    check_damage_is_found(tmp_path / "a.parquet", bytes(changed))


def test_a_damaged_place_of_the_checksum_is_found_without_a_crash(sound_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(sound_bytes)
    program = (
        "import sys\nfrom pathlib import Path\nfrom ekgsearch.errors import StorageError\n"
        "from ekgsearch.storage.tables import read_arrow\n"
        "folder, start = Path(sys.argv[1]), int(sys.argv[2])\n"
        "data = (folder / 'sound').read_bytes()\n"
        "for place in range(start, start + 8):\n"
        "    for mask in range(1, 256):\n"
        "        changed = bytearray(data)\n        changed[place] ^= mask\n"
        "        (folder / 'a.parquet').write_bytes(changed)\n"
        "        try:\n            read_arrow(folder / 'a.parquet')\n"
        "        except StorageError:\n            continue\n"
        "        sys.exit(f'byte {place} mask {mask} was not found')\n"
    )
    start = str(checksum_marker(sound_bytes).start)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), start], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_every_flipped_bit_and_every_truncation_is_found(sound_bytes: bytes, tmp_path: Path) -> None:
    for position in range(len(sound_bytes)):
        check_damage_is_found(tmp_path / "a.parquet", sound_bytes[:position])
        if position in checksum_marker(sound_bytes):
            continue
        for bit in range(8):
            changed = bytearray(sound_bytes)
            changed[position] ^= 1 << bit
            check_damage_is_found(tmp_path / "a.parquet", bytes(changed))


def test_a_full_disk_keeps_the_old_rows(small_disk: Path) -> None:
    path = small_disk / "a.parquet"
    write_table(path, ROWS[:1], SubnetworkRow)
    (small_disk / "filler").write_bytes(bytes((1 << 20) - 8192))
    with pytest.raises(StorageError, match="no space is left"):
        append_rows(
            path, [SubnetworkRow("run", i, i * 7, f"g{i * i}", i, i, str(i**5)) for i in range(9999)], SubnetworkRow
        )
    assert len(read_table(path)) == 1
