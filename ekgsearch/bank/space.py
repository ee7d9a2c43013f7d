"""Check that the disks have room for the part of a memory bank that is missing, before any work."""

from pathlib import Path

from ekgsearch.bank.cache import cache_path
from ekgsearch.bank.column import ColumnManifest
from ekgsearch.bank.commit import StoredBank, find_all, missing_from
from ekgsearch.bank.layout import block_rows
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.errors import StorageError
from ekgsearch.storage.files import free_bytes
from ekgsearch.storage.objects import ObjectStore


def check_space(store: ObjectStore, spec: BankSpec, cache_dir: Path | None) -> None:
    """Compare the free space with the blocks that the store lacks and with the local copy, as far as it is not there.

    Args:
        store: where the bank lives; one that cannot tell its free space is not checked.
        spec: the bank.
        cache_dir: folder of the local copy; None where this machine needs none.

    Raises:
        StorageError: too little space, with both numbers.
    """
    found = find_all(store, spec)
    missing = missing_from(spec, found)
    for_store = sum(
        block_rows(spec, lacking.block) * sum(spec.columns[position].image_bytes for position in lacking.columns)
        for lacking in missing
    )
    store_free = store.free_bytes()
    if cache_dir is None:
        _compare(store.uri, store_free, for_store, 0)
        return
    for_copy = spec.num_bytes
    if not missing:
        columns = (
            ColumnManifest(column, tuple(shards[block] for block in range(spec.num_blocks)))
            for column, shards in zip(spec.columns, found, strict=True)
        )
        bank = StoredBank.of(spec, tuple(columns))
        for_copy = max(0, for_copy - _allocated(cache_path(bank.manifest, cache_dir)))
    if store_free is not None and _disk(Path(store.uri)) == _disk(cache_dir):
        _compare(f"{store.uri} and {cache_dir}", store_free, for_store, for_copy)
    else:
        _compare(store.uri, store_free, for_store, 0)
        _compare(str(cache_dir), free_bytes(cache_dir), 0, for_copy)


def _compare(where: str, free: int | None, for_store: int, for_copy: int) -> None:
    needed = for_store + for_copy
    if free is not None and free < needed:
        raise StorageError(
            f"{where}: expected {needed} free bytes for the memory bank ({for_store} for blocks that are not stored, "
            f"{for_copy} for the local copy), found {free}; free {needed - free} bytes, choose another place "
            "(bank.uri, bank.cache), fewer teachers or dtype int8"
        )


def _allocated(path: Path) -> int:
    """Bytes of the disk that a file has; 0 where there is none."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def _disk(folder: Path) -> int:
    """Which file system a folder lies on, or will lie on once it is made."""
    return next(path for path in (folder, *folder.parents) if path.exists()).stat().st_dev
