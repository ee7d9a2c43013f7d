"""Rows as parquet tables whose schema says in words what every column holds."""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ekgsearch.errors import StorageError
from ekgsearch.storage.checksums import BLANK_CHECKSUM, CHECKSUM_KEY, seal, verify_seal
from ekgsearch.storage.files import read_bytes, write_atomically

_COLUMN_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    dict[str, str]: pa.map_(pa.string(), pa.string()),
}
_ROW_TYPE_KEY = b"row_type"
_CHECKSUM_MARKER = CHECKSUM_KEY.encode() + b"\x18\x40"  # in the footer (Thrift): the key, then a text of 64 bytes


@functools.cache
def schema(row_type: type) -> pa.Schema:
    """Arrow schema of the table of a row dataclass.

    Args:
        row_type: dataclass of rows whose fields are str, int, float, bool or dict[str, str] (a map), or one of these
            or None.

    Returns:
        One column per field, in order, with the field's description as column metadata.

    Raises:
        StorageError: a field has another type.
    """
    hints = typing.get_type_hints(row_type)
    columns = []
    for column in dataclasses.fields(row_type):
        hint, nullable = _without_none(hints[column.name])
        if hint not in _COLUMN_TYPES:
            raise StorageError(
                f"{row_type.__name__}.{column.name} is {hints[column.name]}; expected str, int, float, bool, "
                "dict[str, str], or one of these or None"
            )
        description = str(column.metadata.get("description", ""))
        kind = _COLUMN_TYPES[hint]
        columns.append(pa.field(column.name, kind, nullable=nullable, metadata={"description": description}))
    return pa.schema(columns, metadata={_ROW_TYPE_KEY: row_type.__name__.encode()})


def fitted(table: pa.Table, row_type: type, place: str) -> pa.Table:
    """A table with exactly the columns of a row dataclass, matched by name, so that files of several versions join.

    A column that the table lacks gets the default of its field; one that the dataclass does not know is left out.

    Args:
        table: as it was read.
        row_type: dataclass of rows.
        place: what the table is, for the message.

    Raises:
        StorageError: a column without a default is missing, or one has another type.
    """
    expected = schema(row_type)
    defaults = {item.name: item for item in dataclasses.fields(row_type)}
    absent = [name for name in expected.names if name not in table.column_names and _is_required(defaults[name])]
    if absent:
        raise StorageError(
            f"table {place} lacks the columns {', '.join(absent)}; it was written by another version of ekgsearch: "
            "read it with that version, or run the job again"
        )
    columns = []
    for column in expected:
        if column.name in table.column_names:
            found = table.column(column.name)
        else:
            item = defaults[column.name]
            value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            value = list(value.items()) if isinstance(value, dict) else value
            found = pa.array([value] * table.num_rows, type=column.type)
        try:
            columns.append(found.cast(column.type))
        except pa.ArrowException as error:
            raise StorageError(f"table {place}: column {column.name} expects {column.type}: {error}") from error
    return pa.Table.from_arrays(columns, schema=expected)


def _is_required(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _without_none(hint: Any) -> tuple[Any, bool]:
    """The type of a column, and whether it may be empty."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next(kind for kind in kinds if kind is not type(None)), type(None) in kinds


def write_table(path: Path, rows: Iterable[Any], row_type: type) -> None:
    """Write rows to a parquet file in two phases, replacing what was there.

    Args:
        path: file to write; its folder must exist.
        rows: instances of the row dataclass.
        row_type: dataclass from `ekgsearch.rows`.

    Raises:
        StorageError: a value does not fit its column, or the disk refuses.
    """
    write_arrow(path, arrow_table(rows, row_type))


def append_rows(path: Path, rows: Iterable[Any], row_type: type) -> None:
    """Add rows to a parquet file by writing it anew in two phases; linear in the rows already there.

    Args:
        path: file to extend; made where it is missing, its folder must exist.
        rows: instances of the row dataclass.
        row_type: dataclass from `ekgsearch.rows`.

    Raises:
        StorageError: the file holds another kind of row or is damaged, a value does not fit, or the disk refuses.
    """
    new = arrow_table(rows, row_type)
    if path.exists():
        old = read_arrow(path)
        if not old.schema.equals(new.schema):
            raise StorageError(
                f"{path} has columns {old.schema.names}, expected {new.schema.names} of {row_type.__name__}; "
                f"an older version wrote it: move it away"
            )
        new = pa.concat_tables([old, new]).replace_schema_metadata(new.schema.metadata)
    write_arrow(path, new)


def arrow_table(rows: Iterable[Any], row_type: type) -> pa.Table:
    """Turn rows into a table.

    Args:
        rows: instances of the row dataclass.
        row_type: the dataclass.

    Raises:
        StorageError: a value is not exactly of its column's type.
    """
    expected = schema(row_type)
    rows = list(rows)
    for row in rows:
        if type(row) is not row_type:
            raise StorageError(f"expected rows of type {row_type.__name__}, found {type(row).__name__}")
    arrays = []
    for column in expected:
        values = [getattr(row, column.name) for row in rows]
        if pa.types.is_map(column.type):
            values = [list(value.items()) for value in values]
        try:
            arrays.append(pa.array(values, type=column.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise StorageError(f"{row_type.__name__}.{column.name} expects {column.type}: {error}") from error
        if arrays[-1].null_count and not column.nullable:
            raise StorageError(f"{row_type.__name__}.{column.name} expects {column.type}, found None; write NaN or ''")
    return pa.Table.from_arrays(arrays, schema=expected)


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write an Arrow table to a parquet file in two phases, with a checksum of its content in its metadata.

    Args:
        path: file to write; its folder must exist.
        table: table with its schema metadata, which are kept.

    Raises:
        StorageError: the disk refuses.
    """
    write_atomically(path, arrow_bytes(table))


def arrow_bytes(table: pa.Table) -> bytearray:
    """A table as the bytes of a parquet file, with a checksum of its content in its metadata."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({CHECKSUM_KEY: BLANK_CHECKSUM})
    data = bytearray(memoryview(sink.getvalue()))
    seal(data, _checksum_start(data))
    return data


def read_arrow(path: Path) -> pa.Table:
    """Read and verify a parquet file.

    Args:
        path: file to read; a checksum is verified where the file has one.

    Returns:
        The table with the descriptions of its columns, without the checksum.

    Raises:
        StorageError: the file is missing, damaged or no parquet file.
    """
    data = read_bytes(path)
    start = _checksum_start(data)
    if start >= 0:
        verify_seal(data, start, str(path))  # before parsing: Arrow is not safe with every damaged footer
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise StorageError(
            f"{path} is no whole parquet file ({len(data)} bytes): {error}; restore it from a copy or write it again"
        ) from error
    metadata = dict(table.schema.metadata or {})
    metadata.pop(CHECKSUM_KEY.encode(), None)
    if start < 0 and _ROW_TYPE_KEY in metadata:
        raise StorageError(f"{path} has lost its checksum, so it is damaged; restore it from a copy or write it again")
    return table.replace_schema_metadata(metadata)


def _checksum_start(data: bytearray | bytes) -> int:
    """Position of the first digit of the checksum in the parquet footer; -1 where there is none."""
    found = data.rfind(_CHECKSUM_MARKER)
    return found + len(_CHECKSUM_MARKER) if found >= 0 else -1


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet file as a pandas frame.

    Args:
        path: file to read.

    Returns:
        One row per record; ``frame.attrs["descriptions"]`` has the sentence for each column.

    Raises:
        StorageError: the file is missing, damaged or no parquet file.
    """
    table = read_arrow(path)
    frame: pd.DataFrame = table.to_pandas()
    frame.attrs["descriptions"] = descriptions(table.schema)
    return frame


def descriptions(table_schema: pa.Schema) -> dict[str, str]:
    """Sentence by column name, as far as a schema has them.

    Args:
        table_schema: schema of a table read or made here.
    """
    found = {}
    for column in table_schema:
        text = (column.metadata or {}).get(b"description")
        if text:
            found[column.name] = text.decode()
    return found


def concat_tables(paths: Sequence[Path]) -> pa.Table:
    """Put the rows of several parquet files of one kind under each other.

    Args:
        paths: files to read, at least one.

    Returns:
        One table with the schema of the first; a column that an older file lacks is empty there.

    Raises:
        StorageError: no file is given, a file is missing or damaged, or two files disagree on a column's type.
    """
    if not paths:
        raise StorageError("no tables to put together; expected at least one parquet file")
    tables = [read_arrow(path) for path in paths]
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise StorageError(f"the tables {[str(path) for path in paths]} do not fit together: {error}") from error
