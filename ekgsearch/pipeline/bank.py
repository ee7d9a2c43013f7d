"""The memory bank of a run: its address, its room on the disks, and how it is filled."""

import logging
from dataclasses import replace
from pathlib import Path

from ekgsearch.bank.bank import closest_bank
from ekgsearch.bank.build import commit, manifest_key, missing_blocks
from ekgsearch.bank.manifest import BankManifest, BankSpec, id_ranges
from ekgsearch.bank.space import check_space
from ekgsearch.channels.head import classifier
from ekgsearch.errors import StorageError
from ekgsearch.experiment import expand_path
from ekgsearch.finetune.config import BANK_OBJECTIVES, EMBEDDING_OBJECTIVES
from ekgsearch.pipeline.decisions import decisions, teachers_of
from ekgsearch.pipeline.replaced import note_replaced, replaced_in_bank
from ekgsearch.pipeline.state import RunState
from ekgsearch.records import Phase, content_hash
from ekgsearch.runtime.progress import Progress
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.objects import open_store
from ekgsearch.workers.spec import BuiltBlock
from ekgsearch.workers.team import BankOrder, Team
from ekgsearch.workers.training import BankAddress

log = logging.getLogger(__name__)

MOST_BATCHES_PER_BLOCK = 8
"""Batches in one stored block of the memory bank, unless that leaves the workers too few blocks to share."""

MOST_BLOCK_BYTES = 8_000_000
"""Bytes of one stored block, unless one batch is more: a store takes so many in one request."""


def has_bank(state: RunState) -> bool:
    """Whether nothing has to be built: the fine-tuning has ended, or the store holds all that its manifest names.

    A bank that the journal names may have been lost or damaged since, or the job may name another store by now.
    """
    if state.line("finetune"):
        return True
    if not state.line("bank"):
        return False
    spec, store = bank_address(state).spec, open_store(bank_uri(state))
    key = manifest_key(spec)
    if not store.exists(key):
        return False
    try:
        shards = BankManifest.from_bytes(store.get(key), f"{store.uri}/{key}").shards
    except StorageError as error:
        log.warning("%s", error)
        return False
    sizes = store.sizes(f"{spec.prefix}/block-")
    return all(sizes.get(shard.key) == shard.bytes for shard in shards)


def check_bank_store(state: RunState) -> None:
    """Find out before any work whether the memory bank and its local copy have room, and what the store can do.

    Before the search nobody knows the teachers, so nothing counts as stored. On a cluster that was named, the local
    copies are those of other machines.
    """
    job = state.setup.job
    if job.finetune.objective not in BANK_OBJECTIVES or state.line("finetune"):
        return
    if state.line("search"):
        spec = bank_address(state).spec
    else:
        spec = bank_spec(state, teachers=("?",) * job.bank.teachers, weights_hash="?")
    store = open_store(bank_uri(state))
    check_space(store, spec, _cache_dir(state) if job.cluster.session_address is None else None)
    log.info("memory bank in %s, create-once writes: %s", store.uri, "yes" if store.creates_once else "no")


def bank_uri(state: RunState) -> str:
    """Where the memory bank lives: as the job says, else inside the run directory; folders are absolute."""
    uri = state.setup.job.bank.uri
    if uri is None:
        return str(own_bank(state.folder))
    return uri if "://" in uri else str(expand_path(uri, "bank.uri").absolute())


def own_bank(run_dir: Path) -> Path:
    """Where the memory bank lives unless the job says otherwise; jobs of other runs may name this folder, too."""
    return run_dir / "bank"


def bank_address(state: RunState) -> BankAddress:
    """The complete memory bank of this run."""
    made = decisions(state)
    chosen = teachers_of(state, made)
    teachers = tuple(made[index].subnetwork.sha256 for index in chosen)
    spec = bank_spec(state, teachers=teachers, weights_hash=file_sha256(state.start_weights))
    resident = state.setup.job.bank.resident
    return BankAddress(spec=spec, uri=bank_uri(state), cache_dir=_cache_dir(state), resident=resident)


def _cache_dir(state: RunState) -> Path:
    folder = state.setup.job.bank.cache
    return expand_path(folder, "bank.cache").absolute() if folder else state.folder / "bank-cache"


def bank_spec(state: RunState, *, teachers: tuple[str, ...], weights_hash: str) -> BankSpec:
    """What the memory bank of this run is made of."""
    setup, section = state.setup, state.setup.job.bank
    ids, num_images = setup.train_ids, len(setup.dataset.train)
    if ids is not None and len(ids) == num_images:
        ids = None
    num_images = num_images if ids is None else len(ids)
    num_batches = -(-num_images // section.batch_size)
    has_embeddings = section.embeddings or setup.job.finetune.objective in EMBEDDING_OBJECTIVES
    spec = BankSpec(
        dataset_hash=setup.dataset.train.content_hash,
        weights_hash=weights_hash,
        network_hash=content_hash([setup.net.to_dict(), setup.mean, setup.std]),
        teachers=teachers,
        num_images=num_images,
        ids=() if ids is None else id_ranges(ids),
        num_classes=setup.dataset.num_classes,
        batch_size=section.batch_size,
        seed=setup.job.seed,
        embeddings=classifier(setup.graph).width if has_embeddings else 0,
        dtype=section.dtype,
    )
    batch_bytes = section.batch_size * spec.row_format.row_bytes
    most = max(1, min(MOST_BATCHES_PER_BLOCK, num_batches // 16, MOST_BLOCK_BYTES // batch_bytes))
    return replace(spec, batches_per_block=most)


def fill_bank(state: RunState, team: Team) -> None:
    """Let a team build the blocks that the store lacks, and commit the bank."""
    made = decisions(state)
    chosen = teachers_of(state, made)
    if len(chosen) < state.setup.job.bank.teachers:
        log.warning(
            "bank.teachers = %d, but the search left %d interim sub-networks beside the student: using %d",
            state.setup.job.bank.teachers,
            len(made) - 1,
            len(chosen),
        )
    spec, uri = bank_address(state).spec, bank_uri(state)
    store = open_store(uri)
    blocks = missing_blocks(store, spec, verify=True)
    log.info(
        "%s: %d of %d blocks of the memory bank are to be built%s",
        store.uri,
        len(blocks),
        spec.num_blocks,
        closest_bank(store, spec) if len(blocks) == spec.num_blocks else "",
    )
    teachers = tuple(made[index].subnetwork for index in chosen)
    devices = state.setup.devices
    state.backend.enlist(len(blocks))
    with (
        state.ledger.attempt(Phase.BANK, devices.name(devices.search), state.backend.num_search_devices) as clock,
        Progress(f"memory bank of {len(chosen)} teachers", spec.num_images, "images", log) as progress,
    ):
        team.charge(clock)

        def on_block(built: BuiltBlock) -> None:
            progress.advance(built.images)
            note_replaced(state, built.block, built.replaced)

        team.build_bank(BankOrder(spec=spec, teachers=teachers, blocks=tuple(blocks), uri=uri), on_block)
        manifest = commit(store, spec)
    replaced = replaced_in_bank(state)
    if replaced:
        log.warning("memory bank: for %d images another one of their class stands in, theirs is damaged", replaced)
    line = state.line("bank")
    if line is None:
        state.journal.append("bank", manifest=manifest.sha256, teachers=list(chosen))
    elif line["manifest"] != manifest.sha256:
        log.warning(
            "%s: the memory bank was built again and differs from the one that the journal names (manifest %s, now "
            "%s): another kind of device, or other versions, round differently; or pictures that were replaced at one "
            "time were sound at the other",
            store.uri,
            line["manifest"],
            manifest.sha256,
        )
