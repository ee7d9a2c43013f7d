"""The memory bank of a run: its address, its room on the disks, and how it is filled."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ekgsearch.bank.commit import closest_bank, commit, is_stored, missing_blocks
from ekgsearch.bank.layout import id_ranges
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import STORED
from ekgsearch.bank.space import check_space
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.head import classifier, find_classifier
from ekgsearch.fields import expand_path
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.methods.base import Decision
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import decisions, teachers_of
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.replaced import note_replaced, replaced_in_bank
from ekgsearch.pipeline.setup import Setup
from ekgsearch.records import PhaseKind, content_hash
from ekgsearch.runtime.listener import Advanced
from ekgsearch.storage.objects import open_store
from ekgsearch.workers.spec import BuiltBlock, SearchSpec
from ekgsearch.workers.team import BankOrder
from ekgsearch.workers.training import BankAddress

log = logging.getLogger(__name__)

SEMANTICS = 1

MOST_BATCHES_PER_BLOCK = 8
"""Batches in one stored block of the memory bank, unless that leaves the workers too few blocks to share."""

MOST_BLOCK_BYTES = 4_000_000
"""Bytes of one stored block of a column, unless one batch is more: those of K teachers, whose outputs a process that
builds or reads the bank holds together, still take few in its memory."""


class Bank(Phase):
    """Let the search workers store the outputs of the teachers for all training images in use."""

    kind = PhaseKind.BANK
    name = "bank"
    needs_workers = True

    def check(self, context: RunContext) -> None:
        """Find out whether the memory bank and its local copy have room, and what the store can do.

        Before the search nobody knows the teachers, so nothing counts as stored. On a cluster that was named, the
        local copies are those of other machines.
        """
        if context.committed("finetune-slim"):
            return
        job = context.setup.job
        if context.committed("search"):
            spec = bank_address(context).spec
        else:
            spec = bank_spec(context, teachers=("?",) * job.bank.teachers, weights_hash="?")
        store = open_store(bank_uri(context))
        check_space(store, spec, _cache_dir(context) if job.cluster.session_address is None else None)
        log.info("memory bank in %s, create-once writes: %s", store.uri, "yes" if store.creates_once else "no")

    def inputs(self, context: RunContext) -> Inputs:
        """What the bank is made of, and by what it is computed."""
        setup = context.setup
        return Inputs(
            semantics=SEMANTICS,
            sections={"bank": setup.job.bank.identity()},
            choices={"bank_spec": bank_address(context).spec.sha256},
            device=setup.devices.search,
            threads=setup.job.cluster.threads_per_worker,
        )

    def is_there(self, context: RunContext) -> bool:
        """Whether nothing has to be built: the fine-tuning has ended, or the store holds all that its manifest names.

        A bank that the journal names may have been lost or damaged since, or the job may name another store by now.
        """
        return context.committed("finetune-slim") is not None or is_stored(
            open_store(bank_uri(context)), bank_address(context).spec
        )

    def is_shared(self, context: RunContext) -> bool:
        """Whether the bank itself lies in the phase store, where all runs find it."""
        return context.setup.job.bank.uri is None

    def run(self, context: RunContext) -> Result:
        """Let a team build the blocks that the store lacks."""
        return _fill(context)


def bank_uri(context: RunContext) -> str:
    """Where the memory bank lives: as the job says, else in the phase store, else in the run directory."""
    uri = context.setup.job.bank.uri
    if uri is None:
        return str(own_bank(context.folder)) if context.store is None else context.store.uri
    return uri if "://" in uri else str(expand_path(uri, "bank.uri").absolute())


def own_bank(run_dir: Path) -> Path:
    """Where the memory bank lives unless the job says otherwise; jobs of other runs may name this folder, too."""
    return run_dir / "bank"


def bank_address(context: RunContext) -> BankAddress:
    """The complete memory bank of this run."""
    made = decisions(context)
    chosen = teachers_of(context, made)
    teachers = tuple(made[index].subnetwork.sha256 for index in chosen)
    spec = bank_spec(context, teachers=teachers, weights_hash=context.weights_sha256("warmup"))
    resident = context.setup.job.bank.resident
    return BankAddress(spec=spec, uri=bank_uri(context), cache_dir=_cache_dir(context), resident=resident)


def _cache_dir(context: RunContext) -> Path:
    folder = context.setup.job.bank.cache
    return expand_path(folder, "bank.cache").absolute() if folder else context.folder / "bank-cache"


def bank_spec(context: RunContext, *, teachers: tuple[str, ...], weights_hash: str) -> BankSpec:
    """What the memory bank of this run is made of."""
    setup, section = context.setup, context.setup.job.bank
    ids, num_images = setup.train_ids, len(setup.dataset.train)
    if ids is not None and len(ids) == num_images:
        ids = None
    num_images = num_images if ids is None else len(ids)
    has_embeddings = section.embeddings or needs_of(setup.job.finetune.objective).embeddings
    return BankSpec(
        dataset_hash=setup.dataset.train.content_hash,
        weights_hash=weights_hash,
        network_hash=content_hash(setup.network_identity),
        teachers=teachers,
        num_images=num_images,
        ids=() if ids is None else id_ranges(ids),
        num_classes=setup.dataset.num_classes,
        batch_size=section.batch_size,
        batches_per_block=_batches_per_block(setup, num_images),
        seed=setup.job.seed,
        embeddings=classifier(setup.graph).width if has_embeddings else 0,
        dtype=section.dtype,
        tier=_tier(setup),
    )


def _batches_per_block(setup: Setup, num_images: int) -> int:
    """Batches in one block: the same for every number of teachers, with and without embeddings, so that banks share."""
    section = setup.job.bank
    head = find_classifier(setup.graph)
    width = max(setup.dataset.num_classes, head.width if head else 0)
    batch_bytes = section.batch_size * width * STORED[section.dtype].itemsize
    num_batches = -(-num_images // section.batch_size)
    return max(1, min(MOST_BATCHES_PER_BLOCK, num_batches // 16, MOST_BLOCK_BYTES // batch_bytes))


def _tier(setup: Setup) -> str:
    """What rounds differently where a bank is built; threads add in another order on CPUs only."""
    kind = setup.devices.search
    return "-".join([kind, *([str(setup.job.cluster.threads_per_worker)] if kind == "cpu" else []), EXACT.precision])


def _fill(context: RunContext) -> Result:
    made = decisions(context)
    chosen = teachers_of(context, made)
    if len(chosen) < context.setup.job.bank.teachers:
        log.warning(
            "bank.teachers = %d, but the search left %d interim sub-networks next to the student: using %d",
            context.setup.job.bank.teachers,
            len(made) - 1,
            len(chosen),
        )
    spec, uri = bank_address(context).spec, bank_uri(context)
    if context.verifies and is_stored(open_store(uri), spec):
        with tempfile.TemporaryDirectory(prefix="ekgsearch-bank-") as folder:
            return _filled(context, spec, folder, made, chosen)
    return _filled(context, spec, uri, made, chosen)


def _filled(context: RunContext, spec: BankSpec, uri: str, made: Sequence[Decision], chosen: Sequence[int]) -> Result:
    """Build the blocks that a store lacks, and complete the bank.

    Args:
        context: the run.
        spec: what the bank is made of.
        uri: where it is built; elsewhere than the run's own bank where that one is to be verified.
        made: decisions of the search.
        chosen: those whose sub-networks are the teachers.
    """
    store = open_store(uri)
    missing = missing_blocks(store, spec, verify=True)
    lacking = {position for block in missing for position in block.columns}
    log.info(
        "%s: %d of %d blocks of the memory bank are to be built, for %d of its %d columns%s",
        store.uri,
        len(missing),
        spec.num_blocks,
        len(lacking),
        len(spec.columns),
        closest_bank(store, spec) if len(missing) == spec.num_blocks else "",
    )
    if missing:
        teachers = tuple(made[index].subnetwork for index in chosen)
        _build(context, BankOrder(spec=spec, teachers=teachers, missing=tuple(missing), uri=uri))
    manifest = commit(store, spec).manifest
    _warn_of_another(context, store.uri, manifest.sha256)
    return Result(fields={"manifest": manifest.sha256, "teachers": list(chosen)})


def _build(context: RunContext, order: BankOrder) -> None:
    """Let the team build blocks."""
    setup, backend = context.setup, context.backend
    device = setup.devices.search
    # A new team has no batch: the bank replaces damaged pictures, so nobody may stop at one of the search.
    plain = SearchSpec(run=setup.job.run_name, batches=(), nominal_batch=None)
    spec = replace(setup.search_spec, batches=()) if setup.job.search.needs_workers else plain
    team = context.teams.get(setup.workload(context.start_weights, device), spec)
    backend.enlist(len(order.missing))
    name, devices = setup.devices.name(device), backend.num_search_devices
    with context.charged(PhaseKind.BANK, Bank.name, name, devices) as clock:
        team.charge(clock)
        label, total = f"memory bank of {len(order.teachers)} teachers", order.spec.num_images

        def tell(done: int, *, is_end: bool = False) -> None:
            context.listener.hear(Advanced(label=label, done=done, total=total, unit="images", is_end=is_end))

        def on_block(built: BuiltBlock) -> None:
            tell(built.images)
            note_replaced(context, built.block, built.replaced)

        tell(0)
        team.build_bank(order, on_block)
        tell(0, is_end=True)
    replaced = replaced_in_bank(context)
    if replaced:
        log.warning("memory bank: for %d images another one of their class stands in, theirs is damaged", replaced)


def _warn_of_another(context: RunContext, uri: str, manifest: str) -> None:
    """Warn where the bank is not the one that the journal names."""
    line = context.committed(Bank.name)
    if line is not None and line["manifest"] != manifest:
        log.warning(
            "%s: the memory bank was built again and differs from the one that the journal names (manifest %s, now "
            "%s): another kind of device, or other versions, round differently; or pictures that were replaced at one "
            "time were sound at the other",
            uri,
            line["manifest"],
            manifest,
        )
