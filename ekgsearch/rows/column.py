"""A column of a table: a field that says in words what it holds."""

from dataclasses import MISSING, field
from typing import Any


def column(text: str, default: Any = MISSING, *, factory: Any = MISSING) -> Any:
    """Declare a table column.

    Args:
        text: the sentence that documents it in the parquet schema.
        default: value of rows that do not give it, and of tables written before the column was there.
        factory: makes this value, in place of `default`.
    """
    metadata = {"description": text}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
