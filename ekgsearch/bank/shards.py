"""The stored blocks of columns: write, read, find and verify them."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch import Tensor

from ekgsearch.bank.column import ColumnManifest, ColumnSpec, Shard
from ekgsearch.bank.layout import block_rows
from ekgsearch.bank.rows import encode
from ekgsearch.errors import StorageError
from ekgsearch.storage.objects import ObjectStore
from ekgsearch.storage.tensors import serialise_tensors, view_arrays

logger = logging.getLogger(__name__)

NUM_VERIFIERS = 4
"""Shards that are read back at a time."""


def write_shard(store: ObjectStore, column: ColumnSpec, block: int, values: Tensor) -> Shard:
    """Store one block under a key that ends in its checksum; writing it twice changes nothing.

    Args:
        store: where the bank lives.
        column: the column the block belongs to.
        block: block index, from 0.
        values: outputs (rows, width) in the order of `bank_layout`.

    Raises:
        StorageError: values of another shape than the layout asks for, or the store refused.
        NumericsError: an output beyond the range of float16.
    """
    expected = (block_rows(column, block), column.width)
    if tuple(values.shape) != expected:
        raise StorageError(
            f"memory bank, {column.part} of teacher {column.teacher}, block {block}: expected (images, values) "
            f"{expected}, found {tuple(values.shape)}"
        )
    stored = encode(values, column.part, column.dtype)
    data = serialise_tensors(stored, {"column": column.sha256, "block": str(block)})
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{column.prefix}/block-{block:06d}-{sha256}.safetensors"
    store.put(key, data)
    return Shard(block, key, sha256, len(values), len(data))


def read_shard(store: ObjectStore, column: ColumnSpec, shard: Shard) -> dict[str, np.ndarray]:
    """Read one block back, verified.

    Returns:
        Array (rows, values) by name, in the order of `bank_layout`; see `ekgsearch.bank.rows.stored_tensors`.

    Raises:
        StorageError: missing, truncated or altered; the message names the object.
    """
    return _unpacked(store, column, shard, store.get(shard.key))


def _unpacked(store: ObjectStore, column: ColumnSpec, shard: Shard, data: bytes) -> dict[str, np.ndarray]:
    found = hashlib.sha256(data).hexdigest()
    if len(data) != shard.bytes or found != shard.sha256:
        raise StorageError(
            f"{store.uri}/{shard.key}: expected {shard.bytes} bytes with SHA-256 {shard.sha256}, found {len(data)} "
            f"bytes with {found}; delete this object and run again, its block is rebuilt"
        )
    arrays = view_arrays(data, f"{store.uri}/{shard.key}")
    num_rows = block_rows(column, shard.block)
    wanted = {name: (dtype, (num_rows, values)) for name, (values, dtype) in column.tensors.items()}
    held = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    if held != wanted:
        raise StorageError(
            f"{store.uri}/{shard.key}: expected the tensors {wanted}, found {held}; delete this object and run again, "
            "its block is rebuilt"
        )
    return arrays


def find_shards(store: ObjectStore, column: ColumnSpec) -> dict[int, Shard]:
    """List the stored blocks of a column, committed or not.

    Where a block was stored twice with different bytes (a machine that rounds differently computed it), the one that
    the manifest of the column names counts; while there is no manifest, the smallest key.

    Returns:
        Shards by block index.
    """
    shards: dict[int, Shard] = {}
    sizes = store.sizes(f"{column.prefix}/")
    for key, size in sizes.items():
        name = key.rsplit("/", 1)[1].removeprefix("block-").removesuffix(".safetensors")
        block, _, sha256 = name.partition("-")
        if not block.isdecimal() or int(block) >= column.num_blocks or int(block) in shards:
            continue
        shards[int(block)] = Shard(int(block), key, sha256, block_rows(column, int(block)), size)
    manifest = find_column(store, column) if column.manifest_key in sizes else None
    for shard in manifest.shards if manifest else ():
        if shard.key in sizes or store.exists(shard.key):  # the list may lag behind what was stored
            shards[shard.block] = shard
    return shards


def find_damaged(
    store: ObjectStore, columns: Sequence[ColumnSpec], shards: Sequence[dict[int, Shard]]
) -> list[tuple[int, Shard]]:
    """Read shards of several columns, and list those that are not whole with the position of their column."""
    every = [(position, shard) for position, found in enumerate(shards) for shard in found.values()]
    with ThreadPoolExecutor(NUM_VERIFIERS) as verifiers:
        is_sound = verifiers.map(lambda place: _is_sound(store, columns[place[0]], place[1]), every)
        return [place for place, sound in zip(every, is_sound, strict=True) if not sound]


def _is_sound(store: ObjectStore, column: ColumnSpec, shard: Shard) -> bool:
    try:
        data = store.get(shard.key)
    except StorageError:
        if store.exists(shard.key):
            raise  # a store that does not answer says nothing about the shard
        return False  # the list of objects lags behind a removal
    try:
        _unpacked(store, column, shard, data)
    except StorageError as error:
        logger.warning("%s", error)
        return False
    return True


def find_column(store: ObjectStore, column: ColumnSpec) -> ColumnManifest | None:
    """Read the manifest of a column; None where there is none, or, with a warning, where it cannot be used."""
    key = column.manifest_key
    if not store.exists(key):
        return None
    try:
        data = store.get(key)
    except StorageError:
        if store.exists(key):
            raise  # a store that does not answer says nothing about the manifest
        return None  # another run has removed it in the meantime
    try:
        manifest = ColumnManifest.from_bytes(data, f"{store.uri}/{key}")
    except StorageError as error:
        logger.warning("%s", error)
        return None
    if manifest.spec != column:
        logger.warning("%s/%s: expected the manifest of another column; it is written again", store.uri, key)
        return None
    return manifest


def commit_column(store: ObjectStore, column: ColumnSpec, shards: dict[int, Shard]) -> ColumnManifest:
    """Write the manifest of a column once every block is stored.

    The first manifest stays: where another run has completed the same column, its blocks are used. A manifest that
    names blocks which are no longer there is replaced.

    Args:
        store: where the bank lives.
        column: the column.
        shards: all of its blocks, by index.

    Returns:
        The manifest that is in the store.

    Raises:
        StorageError: the store refused.
    """
    made = ColumnManifest(column, tuple(shards[block] for block in range(column.num_blocks)))
    key = column.manifest_key
    if not store.create(key, made.to_bytes()):
        there = find_column(store, column)
        if there is not None and is_whole(store, there):
            return there
        store.put(key, made.to_bytes())
    return made


def is_whole(store: ObjectStore, manifest: ColumnManifest) -> bool:
    """Whether all blocks that a manifest names are in the store, by key and size."""
    sizes = store.sizes(f"{manifest.spec.prefix}/block-")
    for key in {shard.key for shard in manifest.shards} - sizes.keys():  # the list may lag behind what was stored
        if store.exists(key):
            sizes[key] = store.size(key)
    return all(sizes.get(shard.key) == shard.bytes for shard in manifest.shards)
