"""Completeness of a memory bank: the blocks it lacks, and the manifests by which readers know it."""

import logging
import time
from dataclasses import dataclass

from ekgsearch.bank.column import ColumnManifest, Shard
from ekgsearch.bank.manifest import BankManifest, BankSpec
from ekgsearch.bank.shards import commit_column, find_column, find_damaged, find_shards, is_whole
from ekgsearch.errors import StorageError
from ekgsearch.storage.objects import ObjectStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MissingBlock:
    """A block of images, and which columns of a bank lack it.

    Attributes:
        block: block index, from 0.
        columns: positions in `BankSpec.columns`, ascending; at least one.
    """

    block: int
    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredBank:
    """A complete bank in a store.

    Attributes:
        manifest: its own manifest.
        columns: those of its columns, in the order of `BankSpec.columns`.
    """

    manifest: BankManifest
    columns: tuple[ColumnManifest, ...]

    @classmethod
    def of(cls, spec: BankSpec, columns: tuple[ColumnManifest, ...]) -> "StoredBank":
        """The bank that complete columns make."""
        return cls(BankManifest(spec, tuple(column.sha256 for column in columns)), columns)


def find_all(store: ObjectStore, spec: BankSpec) -> list[dict[int, Shard]]:
    """List the stored blocks of a bank: for each column the shards by block index."""
    return [find_shards(store, column) for column in spec.columns]


def missing_from(spec: BankSpec, found: list[dict[int, Shard]]) -> list[MissingBlock]:
    """Blocks that some column lacks, ascending, where so much was found."""
    lacking = [
        MissingBlock(block, tuple(position for position, shards in enumerate(found) if block not in shards))
        for block in range(spec.num_blocks)
    ]
    return [missing for missing in lacking if missing.columns]


def missing_blocks(store: ObjectStore, spec: BankSpec, *, verify: bool = False) -> list[MissingBlock]:
    """List what still has to be built; a killed build continues with this, and so does a bank that shares columns.

    Args:
        store: where the bank lives.
        spec: the bank.
        verify: read every shard; delete those that are damaged, and before them the manifests that may name them.
    """
    found = find_all(store, spec)
    damaged = find_damaged(store, spec.columns, found) if verify else []
    if damaged:
        store.delete(spec.manifest_key)  # first, so that it never names a column that is gone
    for column in {spec.columns[position] for position, _ in damaged}:
        store.delete(column.manifest_key)  # nor this a shard
    for position, shard in damaged:
        store.delete(shard.key)
        del found[position][shard.block]
    return missing_from(spec, found)


def commit(store: ObjectStore, spec: BankSpec, *, patience_seconds: float = 15) -> StoredBank:
    """Write the manifests once every block is stored; only then does the bank exist for readers.

    Columns that another run has completed stay as they are; the manifest of the bank names what the columns are now.

    Args:
        store: where the bank lives.
        spec: the bank, all of whose blocks have been stored.
        patience_seconds: how long the list of objects may lag behind what was stored, from 0; it is asked for again
            with growing pauses.

    Returns:
        The bank that is in the store.

    Raises:
        StorageError: blocks are missing, or the store refused.
    """
    found = find_all(store, spec)
    waited, pause = 0.0, patience_seconds / 2**5
    while (missing := missing_from(spec, found)) and waited < patience_seconds:
        logger.info("memory bank %s: the list of objects lacks %d blocks; asking again", spec.prefix, len(missing))
        time.sleep(pause)
        waited, pause = waited + pause, 2 * pause
        found = find_all(store, spec)
    if missing:
        raise StorageError(
            f"{store.uri}: expected {spec.num_blocks} blocks of each of {len(spec.columns)} columns for the memory "
            f"bank {spec.prefix}, {len(missing)} are missing (first {[lacking.block for lacking in missing[:5]]}); "
            "build them, then commit"
        )
    pairs = zip(spec.columns, found, strict=True)
    bank = StoredBank.of(spec, tuple(commit_column(store, column, shards) for column, shards in pairs))
    if not store.create(spec.manifest_key, bank.manifest.to_bytes()):
        store.put(spec.manifest_key, bank.manifest.to_bytes())  # it names columns that have been built again since
    logger.info("memory bank %s committed: %d blocks, %d bytes", spec.prefix, spec.num_blocks, spec.num_bytes)
    return bank


def read_bank(store: ObjectStore, expected: BankSpec) -> StoredBank:
    """Read the manifests of a bank and compare them with what the caller needs.

    Raises:
        StorageError: no such bank (the message says how the banks that are there differ), another one, or columns that
            are not those it was completed with.
    """
    where = f"{store.uri}/{expected.manifest_key}"
    if not store.exists(expected.manifest_key):
        raise StorageError(
            f"{where}: expected a complete memory bank, found none{closest_bank(store, expected)}; build it first"
        )
    manifest = BankManifest.from_bytes(store.get(expected.manifest_key), where)
    differences = expected.differences(manifest.spec)
    if differences:
        raise StorageError(
            f"{where} is another memory bank: {'; '.join(differences)}; build one for this run or name "
            "another place for it"
        )
    columns = tuple(_read_column(store, expected, position) for position in range(len(expected.columns)))
    for column, sha256 in zip(columns, manifest.columns, strict=True):
        if column.sha256 != sha256:
            raise StorageError(
                f"{store.uri}/{column.spec.manifest_key}: expected the column {sha256} that {where} names, found "
                f"{column.sha256}: it was built again since; build the bank again, its columns are used"
            )
    return StoredBank(manifest, columns)


def _read_column(store: ObjectStore, spec: BankSpec, position: int) -> ColumnManifest:
    column = spec.columns[position]
    manifest = find_column(store, column)
    if manifest is None:
        raise StorageError(
            f"{store.uri}/{column.manifest_key}: expected the manifest of a column ({column.part} of teacher "
            f"{position % spec.num_teachers}) of the memory bank {spec.prefix}, found none that can be used; build the "
            "bank again, only what is missing is built"
        )
    return manifest


def is_stored(store: ObjectStore, spec: BankSpec) -> bool:
    """Whether a bank is complete and all blocks that it names are in the store, by key and size."""
    try:
        bank = read_bank(store, spec) if store.exists(spec.manifest_key) else None
    except StorageError as error:
        logger.warning("%s", error)
        return False
    return bank is not None and all(is_whole(store, column) for column in bank.columns)


def closest_bank(store: ObjectStore, expected: BankSpec) -> str:
    """Describe the complete bank in the store that differs in the fewest fields; empty where there is none."""
    specs = []
    for key in store.list("bank/"):
        if key.endswith("/manifest.json") and store.exists(key):  # a list of objects may lag behind a removal
            try:
                specs.append(BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}").spec)
            except StorageError as error:  # of another run, or another version
                logger.warning("%s", error)
    if not specs:
        return ""
    closest = min((expected.differences(spec) for spec in specs), key=len)
    return f" (the closest of {len(specs)} others differs: {'; '.join(closest)})"
