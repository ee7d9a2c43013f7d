"""Counts of the images that stand in for damaged ones in the memory bank of a run."""

from pathlib import Path

from ekgsearch.errors import StorageError
from ekgsearch.pipeline.context import RunContext
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.sealed import read_sealed, sealed


def note_replaced(context: RunContext, block: int, replaced: int) -> None:
    """Keep how many images of a block of the memory bank stand in for damaged ones; a run without damage has no file.

    The count depends on when a picture was damaged, so it does not belong in the journal.
    """
    counts = _replaced_by_block(context)
    if counts.get(str(block), 0) != replaced:
        write_atomically(_replaced_path(context), sealed({**counts, str(block): replaced}))


def replaced_in_bank(context: RunContext) -> int:
    """Images that stand in for damaged ones in the blocks of the memory bank that this run has built.

    Raises:
        StorageError: the file with their counts is damaged.
    """
    return sum(_replaced_by_block(context).values())


def _replaced_by_block(context: RunContext) -> dict[str, int]:
    path = _replaced_path(context)
    try:
        counts: dict[str, int] = read_sealed(path) if path.exists() else {}
    except StorageError as error:
        raise StorageError(
            f"{error}; restore it, or delete it: replaced_bank_images then counts none of the blocks built so far"
        ) from error
    return counts


def _replaced_path(context: RunContext) -> Path:
    return context.folder / "bank-replaced.json"
