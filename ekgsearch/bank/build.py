"""Compute blocks of a memory bank: one pass over the images for all columns that lack them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ekgsearch.bank.column import ColumnSpec, Shard
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.bank.shards import write_shard
from ekgsearch.errors import NumericsError, StorageError
from ekgsearch.records import Subnetwork
from ekgsearch.storage.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one teacher says about one batch.

    Attributes:
        logits: (B, C).
        embeddings: input (B, F) of the classifier; None where nobody asked for it.
    """

    logits: Tensor
    embeddings: Tensor | None = None


@torch.no_grad()
def build_block(
    forward: Callable[[Tensor, Subnetwork], Outputs],
    batches: Iterable[Tensor],
    teachers: Sequence[Subnetwork],
    columns: Sequence[ColumnSpec],
) -> list[Tensor]:
    """Run the teachers of some columns over the batches of one block; each batch is read once for all of them.

    Args:
        forward: outputs of a masked network, batch statistics, running ones untouched.
        batches: normalised, un-augmented images (B, 3, H, W), the whole batches of the block in order.
        teachers: the sub-networks; those that no column names are not run.
        columns: what is wanted.

    Returns:
        For each column the outputs (images, width) for all images of the block in order, float32, on the CPU.

    Raises:
        NumericsError: an output that is not a finite number.
    """
    wanted = {column.teacher for column in columns}
    asked = {teacher.sha256: teacher for teacher in teachers if teacher.sha256 in wanted}
    made: list[list[Tensor]] = [[] for _ in columns]
    for images in batches:
        outputs = {name: forward(images, teacher) for name, teacher in asked.items()}  # queued before any is fetched
        for column, values in zip(columns, made, strict=True):
            values.append(getattr(outputs[column.teacher], column.part).float().cpu())
    found = [torch.cat(values) for values in made]
    names = [teacher.sha256 for teacher in teachers]
    bad = [column for column, values in zip(columns, found, strict=True) if not torch.isfinite(values).all()]
    if bad:
        numbers = [names.index(column.teacher) for column in bad if column.part == bad[0].part]
        raise NumericsError(
            f"bank: expected finite {bad[0].part}, found others from teachers {numbers}; check the weights"
        )
    return found


def write_block(store: ObjectStore, spec: BankSpec, block: int, rows: BankRows) -> list[Shard]:
    """Store one block of all columns of a bank.

    Args:
        store: where the bank lives.
        spec: the bank.
        block: block index, from 0.
        rows: outputs in the order of `bank_layout`.

    Returns:
        For each column what was stored.

    Raises:
        StorageError: rows of another shape than the layout asks for, or the store refused.
        NumericsError: an output beyond the range of float16.
    """
    parts = {"logits": rows.logits, "embeddings": rows.embeddings}
    found = {name: (values.shape[1], values.shape[2]) for name, values in parts.items() if values is not None}
    widths = {column.part: column.width for column in spec.columns}
    expected = {name: (width, spec.num_teachers) for name, width in widths.items()}
    if found != expected:
        raise StorageError(f"memory bank {spec.prefix}: expected (values, teachers) {expected}, found {found}")
    columns = [column for values in parts.values() if values is not None for column in values.unbind(-1)]
    return [write_shard(store, column, block, values) for column, values in zip(spec.columns, columns, strict=True)]
