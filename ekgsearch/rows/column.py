"""A column of a table: a field that says in words what it holds."""

from dataclasses import MISSING, field
from typing import Any


def column(text: str, default: Any = MISSING) -> Any:
    """Declare a table column.

    Args:
        text: the sentence that documents it in the parquet schema.
        default: value of rows that do not give it, and of tables written before the column was there.
    """
    return field(default=default, metadata={"description": text})
