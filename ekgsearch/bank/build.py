"""Build a memory bank: fixed batches, blocks of rows, shards stored in two phases."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ekgsearch.bank.manifest import BankManifest, BankSpec, Shard
from ekgsearch.bank.rows import BankRows
from ekgsearch.data.subset import permutation
from ekgsearch.errors import NumericsError, StorageError
from ekgsearch.records import Subnetwork
from ekgsearch.storage.objects import ObjectStore
from ekgsearch.storage.tensors import serialise_tensors, view_arrays

logger = logging.getLogger(__name__)

NUM_VERIFIERS = 4
"""Shards that are read back at a time."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one teacher says about one batch.

    Attributes:
        logits: (B, C).
        embeddings: input (B, F) of the classifier; None where the bank holds none.
    """

    logits: Tensor
    embeddings: Tensor | None = None


def bank_layout(spec: BankSpec) -> list[Tensor]:
    """Say which images each block holds, in which order.

    The images are permuted once (a folder-ordered data set would otherwise give batches of a single class, whose
    statistics mean nothing) and cut into batches; a block is several whole batches, because a batch must never be
    split. The last batch may be short.

    Returns:
        For each block the image ids (rows,), int64; `torch.split(ids, spec.batch_size)` are its batches.
    """
    order = spec.image_ids[permutation(spec.num_images, spec.seed, 0)]
    return list(torch.split(order, spec.batch_size * spec.batches_per_block))


@torch.no_grad()
def build_block(
    forward: Callable[[Tensor, Subnetwork], Outputs], batches: Iterable[Tensor], teachers: Sequence[Subnetwork]
) -> BankRows:
    """Run every teacher over the batches of one block; each batch is read once for all teachers.

    Args:
        forward: outputs of a masked network, batch statistics, running ones untouched.
        batches: normalised, un-augmented images (B, 3, H, W), the whole batches of the block in order.
        teachers: the K sub-networks, the one of the lowest loss first.

    Returns:
        Outputs of all images of the block in order, on the CPU.

    Raises:
        NumericsError: an output that is not a finite number.
    """
    logits: list[Tensor] = []
    embeddings: list[Tensor] = []
    for images in batches:
        outputs = [forward(images, teacher) for teacher in teachers]
        logits.append(torch.stack([output.logits for output in outputs], dim=-1).float().cpu())
        found = [output.embeddings for output in outputs if output.embeddings is not None]
        if found:
            embeddings.append(torch.stack(found, dim=-1).float().cpu())
    rows = BankRows(torch.cat(logits), torch.cat(embeddings) if embeddings else None)
    for name, values in (("logits", rows.logits), ("embeddings", rows.embeddings)):
        if values is not None and not torch.isfinite(values).all():
            bad = (~torch.isfinite(values)).any(dim=0).any(dim=0).nonzero().flatten().tolist()
            raise NumericsError(f"bank: expected finite {name}, found others from teachers {bad}; check the weights")
    return rows


def write_block(store: ObjectStore, spec: BankSpec, block: int, rows: BankRows) -> Shard:
    """Store one block under a key that ends in its checksum; writing it twice changes nothing.

    Args:
        store: where the bank lives.
        spec: the bank the block belongs to.
        block: block index, from 0.
        rows: outputs in the order of `bank_layout`.

    Raises:
        StorageError: rows of another shape than the layout asks for, or the store refused.
        NumericsError: an output beyond the range of float16.
    """
    expected = (block_rows(spec, block), spec.num_classes, spec.embeddings, spec.num_teachers)
    num_features = 0 if rows.embeddings is None else rows.embeddings.shape[1]
    found = (len(rows), rows.logits.shape[1], num_features, rows.logits.shape[2])
    if found != expected:
        raise StorageError(
            f"memory bank {spec.prefix}, block {block}: expected (images, logits, embeddings, teachers) {expected}, "
            f"found {found}"
        )
    data = serialise_tensors(spec.row_format.encode(rows), {"bank": spec.sha256, "block": str(block)})
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{_block_prefix(spec, block)}{sha256}.safetensors"
    store.put(key, data)
    return Shard(block, key, sha256, len(rows), len(data))


def read_shard(store: ObjectStore, spec: BankSpec, shard: Shard) -> np.ndarray:
    """Read one block back, verified.

    Returns:
        Rows (rows, row_bytes), uint8, in the order of `bank_layout`; see `ekgsearch.bank.rows.RowFormat`.

    Raises:
        StorageError: missing, truncated or altered; the message names the object.
    """
    return _unpacked(store, spec, shard, store.get(shard.key))


def _unpacked(store: ObjectStore, spec: BankSpec, shard: Shard, data: bytes) -> np.ndarray:
    found = hashlib.sha256(data).hexdigest()
    if len(data) != shard.bytes or found != shard.sha256:
        raise StorageError(
            f"{store.uri}/{shard.key}: expected {shard.bytes} bytes with SHA-256 {shard.sha256}, found {len(data)} "
            f"bytes with {found}; delete this object and run again, its block is rebuilt"
        )
    arrays = view_arrays(data, f"{store.uri}/{shard.key}")
    num_rows = block_rows(spec, shard.block)
    wanted = {part.name: (part.dtype, (num_rows, *part.shape)) for part in spec.row_format.parts}
    held = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    if held != wanted:
        raise StorageError(
            f"{store.uri}/{shard.key}: expected the tensors {wanted}, found {held}; delete this object and run again, "
            "its block is rebuilt"
        )
    return spec.row_format.pack(arrays)


def block_rows(spec: BankSpec, block: int) -> int:
    """Count the images of one block.

    Raises:
        StorageError: no such block.
    """
    if not 0 <= block < spec.num_blocks:
        raise StorageError(f"memory bank {spec.prefix}: expected a block of 0..{spec.num_blocks - 1}, found {block}")
    size = spec.batch_size * spec.batches_per_block
    return min(size, spec.num_images - block * size)


def find_shards(store: ObjectStore, spec: BankSpec, *, verify: bool = False) -> dict[int, Shard]:
    """List the stored blocks of a bank, committed or not.

    Where a block was stored twice with different bytes (another kind of device computed it), the smallest key counts.

    Args:
        store: where the bank lives.
        spec: the bank.
        verify: read every shard; delete those that are damaged, and before them the manifest that may name them.

    Returns:
        Shards by block index.
    """
    shards: dict[int, Shard] = {}
    for key, size in store.sizes(f"{spec.prefix}/block-").items():
        name = key.rsplit("/", 1)[1].removeprefix("block-").removesuffix(".safetensors")
        block, _, sha256 = name.partition("-")
        if not block.isdecimal() or int(block) >= spec.num_blocks or int(block) in shards:
            continue
        shard = Shard(int(block), key, sha256, block_rows(spec, int(block)), size)
        shards[shard.block] = shard
    if verify:
        with ThreadPoolExecutor(NUM_VERIFIERS) as verifiers:
            is_sound = list(verifiers.map(lambda shard: _is_sound(store, spec, shard), shards.values()))
        damaged = [shard for shard, sound in zip(shards.values(), is_sound, strict=True) if not sound]
        if damaged:
            store.delete(manifest_key(spec))  # first, so that it never names a shard that is gone
        for shard in damaged:
            store.delete(shard.key)
            del shards[shard.block]
    return shards


def missing_blocks(store: ObjectStore, spec: BankSpec, *, verify: bool = False) -> list[int]:
    """List the blocks that still have to be built; a killed build continues with these.

    Args:
        store: where the bank lives.
        spec: the bank.
        verify: read every shard; damaged ones are deleted and count as missing.
    """
    return _listed(store, spec, verify=verify)[1]


def manifest_key(spec: BankSpec) -> str:
    """Key of the manifest of a bank."""
    return f"{spec.prefix}/manifest.json"


def commit(store: ObjectStore, spec: BankSpec, *, patience_seconds: float = 15) -> BankManifest:
    """Write the manifest once every block is stored; only then does the bank exist for readers.

    The first manifest stays: where another run has completed the same bank, its blocks are used, whatever the kind of
    device that computed them. A manifest that names blocks which are no longer there is replaced.

    Args:
        store: where the bank lives.
        spec: the bank, all of whose blocks have been stored.
        patience_seconds: how long the list of objects may lag behind what was stored, from 0; it is asked for again
            with growing pauses.

    Returns:
        The manifest that is in the store.

    Raises:
        StorageError: blocks are missing, or the store refused.
    """
    shards, missing = _listed(store, spec)
    waited, pause = 0.0, patience_seconds / 2**5
    while missing and waited < patience_seconds:
        logger.info("memory bank %s: the list of objects lacks %d blocks; asking again", spec.prefix, len(missing))
        time.sleep(pause)
        waited, pause = waited + pause, 2 * pause
        shards, missing = _listed(store, spec)
    if missing:
        raise StorageError(
            f"{store.uri}/{spec.prefix}: expected {spec.num_blocks} blocks, {len(missing)} are missing "
            f"(first {missing[:5]}); build them, then commit"
        )
    made = BankManifest(spec, tuple(shards[block] for block in range(spec.num_blocks)))
    key = manifest_key(spec)
    if not store.create(key, made.to_bytes()) and not _is_complete(store, key, made):
        store.put(key, made.to_bytes())
    manifest = BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}")
    logger.info("memory bank %s committed: %d blocks, %d bytes", spec.prefix, spec.num_blocks, spec.num_bytes)
    return manifest


def _is_complete(store: ObjectStore, key: str, made: BankManifest) -> bool:
    """Whether the manifest in the store, another than the one just made, names blocks that are all there."""
    try:
        there = BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}")
    except StorageError as error:
        logger.warning("%s", error)
        return False
    sizes = store.sizes(f"{made.spec.prefix}/block-")
    for key in {shard.key for shard in there.shards} - sizes.keys():  # the list may lag behind what was stored
        if store.exists(key):
            sizes[key] = store.size(key)
    return there.spec == made.spec and all(sizes.get(shard.key) == shard.bytes for shard in there.shards)


def _listed(store: ObjectStore, spec: BankSpec, *, verify: bool = False) -> tuple[dict[int, Shard], list[int]]:
    """Shards that the list of objects names, by block index, and the blocks that it lacks."""
    shards = find_shards(store, spec, verify=verify)
    return shards, [block for block in range(spec.num_blocks) if block not in shards]


def _block_prefix(spec: BankSpec, block: int) -> str:
    return f"{spec.prefix}/block-{block:06d}-"


def _is_sound(store: ObjectStore, spec: BankSpec, shard: Shard) -> bool:
    try:
        data = store.get(shard.key)
    except StorageError:
        if store.exists(shard.key):
            raise  # a store that does not answer says nothing about the shard
        return False  # the list of objects lags behind a removal
    try:
        _unpacked(store, spec, shard, data)
    except StorageError as error:
        logger.warning("%s", error)
        return False
    return True
